// src/cuda/stream_memory.cpp - takes and gives back counters and partial results.
#include "cuda/stream_memory.hpp"

#include <algorithm>
#include <utility>

namespace exactile::cuda {
namespace {

/// Counters do not share cache lines.
constexpr std::size_t kLineBytes = 128;
constexpr std::size_t kCountersPerBlock = 512;

}  // namespace

DevicePtr StreamMemory::new_counter() {
  if (first_ == 0) return 0;
  if (used_ == blocks_.size() * kCountersPerBlock) {
    blocks_.push_back(device_.acquire(kCountersPerBlock * kLineBytes));
  }
  const std::size_t slot = used_++ % kCountersPerBlock;
  return blocks_.back().device + slot * kLineBytes;
}

DevicePtr StreamMemory::new_partial() {
  if (partial_bytes_ == 0) return 0;
  return partial_blocks_.emplace_back(device_.acquire(partial_bytes_, Pinned::kNone)).device;
}

LaunchMemory StreamMemory::take(const LaunchStream& stream) {
  if (!stream.capturing) {
    const auto state = std::ranges::find(streams_, stream.id, &StreamState::id);
    if (state != streams_.end()) {
      return {.counter = state->counter,
              .is_zero = leaves_zero_,
              .partial = state->partial,
              .last_use = state->last_use};
    }
  }
  const DevicePtr partial = new_partial();  // before anything is marked as taken: it may throw
  const bool is_first = !std::exchange(first_taken_, true);
  const DevicePtr counter = is_first ? first_ : new_counter();
  if (stream.capturing) {
    return {.counter = counter,
            .is_zero = is_first && leaves_zero_,
            .partial = partial,
            .last_use = nullptr};
  }
  streams_.push_back(
      {.id = stream.id, .counter = counter, .partial = partial, .last_use = device_.make_event()});
  return {.counter = counter,
          .is_zero = is_first,
          .partial = partial,
          .last_use = streams_.back().last_use};
}

void StreamMemory::release(std::vector<Block> blocks, std::vector<Event> last_uses) {
  blocks.insert(blocks.end(), blocks_.begin(), blocks_.end());
  blocks.insert(blocks.end(), partial_blocks_.begin(), partial_blocks_.end());
  for (const StreamState& stream : streams_) last_uses.push_back(stream.last_use);
  device_.release(std::move(blocks), std::move(last_uses));
}

}  // namespace exactile::cuda
