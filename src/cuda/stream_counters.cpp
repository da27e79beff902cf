// src/cuda/stream_counters.cpp - see stream_counters.hpp.
#include "cuda/stream_counters.hpp"

#include <algorithm>
#include <utility>

namespace exactile::cuda {
namespace {

/// Counters do not share cache lines.
constexpr std::size_t kLineBytes = 128;
constexpr std::size_t kCountersPerBlock = 512;

}  // namespace

DevicePtr StreamCounters::new_counter() {
  if (first_ == 0) return 0;
  if (used_ == blocks_.size() * kCountersPerBlock) {
    blocks_.push_back(device_.acquire(kCountersPerBlock * kLineBytes));
  }
  const std::size_t slot = used_++ % kCountersPerBlock;
  return blocks_.back().device + slot * kLineBytes;
}

LaunchCounter StreamCounters::take(const LaunchStream& stream) {
  if (!stream.capturing) {
    const auto state = std::ranges::find(streams_, stream.id, &StreamState::id);
    if (state != streams_.end()) {
      return {.address = state->counter, .is_zero = leaves_zero_, .last_use = state->last_use};
    }
  }
  const bool is_first = !std::exchange(first_taken_, true);
  const DevicePtr counter = is_first ? first_ : new_counter();
  if (stream.capturing) {
    return {.address = counter, .is_zero = is_first && leaves_zero_, .last_use = nullptr};
  }
  streams_.push_back({.id = stream.id, .counter = counter, .last_use = device_.make_event()});
  return {.address = counter, .is_zero = is_first, .last_use = streams_.back().last_use};
}

void StreamCounters::release(std::vector<Block> blocks, std::vector<Event> last_uses) {
  blocks.insert(blocks.end(), blocks_.begin(), blocks_.end());
  for (const StreamState& stream : streams_) last_uses.push_back(stream.last_use);
  device_.release(std::move(blocks), std::move(last_uses));
}

}  // namespace exactile::cuda
