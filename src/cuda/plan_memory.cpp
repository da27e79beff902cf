// src/cuda/plan_memory.cpp - uploads a plan's lists, hands out its counters, frees them in time.
#include "cuda/plan_memory.hpp"

#include <algorithm>
#include <cstring>
#include <exactile/cuda/planner_params.hpp>
#include <stdexcept>
#include <utility>

#include "base/policies.hpp"

namespace exactile::cuda {
namespace {

/// Lists and counters begin at cache lines.
constexpr std::size_t kLineBytes = 128;
constexpr std::size_t kCountersPerBlock = 512;

bool is_capturing(Stream stream) {
  int status = kCaptureStatusNone;
  EXACTILE_DRIVER_CALL(Driver::get(), cuStreamIsCapturing, stream, &status);
  return status != kCaptureStatusNone;
}

}  // namespace

std::size_t DevicePlan::place(std::size_t bytes) {
  const std::size_t offset = ceil_div<std::size_t>(bytes_, kLineBytes) * kLineBytes;
  bytes_ = offset + bytes;
  return offset;
}

DevicePlan::DevicePlan(Device& device, const Plan& plan)
    : device_(device),
      needs_counter_(has_counter(plan.scheduler)),
      leaves_zero_(!plan.user_scheduler) {
  if (plan.device_lengths) {
    records_ = place(std::max<std::size_t>(plan.num_records, 1) * sizeof(TileRecord));
    planned_ = place(sizeof(int32_t));  // not the first: its offset is not 0
    counter_ = place(sizeof(int32_t));
    lists_ = device_.acquire(bytes_);
    return;
  }
  const std::size_t cu_bytes = plan.cu_seqlens_q.size() * sizeof(int32_t);
  const std::size_t record_bytes = plan.records ? plan.num_records * sizeof(TileRecord) : 0;
  cu_q_ = place(cu_bytes);
  cu_k_ = place(cu_bytes);
  records_ = place(record_bytes);
  counter_ = place(sizeof(int32_t));
  lists_ = device_.acquire(bytes_);
  std::memcpy(lists_.host + cu_q_, plan.cu_seqlens_q.data(), cu_bytes);
  std::memcpy(lists_.host + cu_k_, plan.cu_seqlens_k.data(), cu_bytes);
  if (record_bytes > 0) std::memcpy(lists_.host + records_, plan.records.get(), record_bytes);
  std::memset(lists_.host + counter_, 0, sizeof(int32_t));
}

DevicePlan::~DevicePlan() {
  const bool never_run = planned_ != 0 && upload_ == Upload::kStarted && streams_.empty();
  if (never_run && !uploaded_) {
    try {
      const ContextScope scope(device_);
      record_planner();
    } catch (const std::runtime_error&) {  // at exit the driver may be gone
      return;
    }
  }
  std::vector<Event> last_uses;
  if (uploaded_) last_uses.push_back(uploaded_);
  for (const StreamState& stream : streams_) last_uses.push_back(stream.last_use);
  std::vector<Block> blocks = std::move(counters_);
  blocks.push_back(lists_);
  device_.release(std::move(blocks), std::move(last_uses));
}

void DevicePlan::upload(Stream stream, bool capturing) {
  const Driver& driver = Driver::get();
  const RelaxedCapture relaxed;
  if (upload_ == Upload::kNotStarted) {
    // Not into a graph: it would only happen when that is replayed.
    const Stream copy_stream = capturing ? device_.side_stream() : stream;
    if (!uploaded_) uploaded_ = device_.make_event();
    EXACTILE_DRIVER_CALL(driver, cuMemcpyHtoDAsync, lists_.device, lists_.host, bytes_,
                         copy_stream);
    EXACTILE_DRIVER_CALL(driver, cuEventRecord, uploaded_, copy_stream);
    upload_ = Upload::kStarted;
    if (!capturing) return;
  }
  if (capturing) {  // a captured stream cannot wait for what happens outside its graph
    EXACTILE_DRIVER_CALL(driver, cuEventSynchronize, uploaded_);
    upload_ = Upload::kDone;
    return;
  }
  const Result result = driver.cuEventQuery(uploaded_);
  if (result != kErrorNotReady) driver.check(result, "cuEventQuery");
  if (result == kSuccess) upload_ = Upload::kDone;
  if (result == kErrorNotReady) {
    EXACTILE_DRIVER_CALL(driver, cuStreamWaitEvent, stream, uploaded_, 0);
  }
}

DevicePtr DevicePlan::new_counter() {
  if (!needs_counter_) return 0;
  if (used_counters_ == counters_.size() * kCountersPerBlock) {
    counters_.push_back(device_.acquire(kCountersPerBlock * kLineBytes));
  }
  const std::size_t slot = used_counters_++ % kCountersPerBlock;
  return counters_.back().device + slot * kLineBytes;
}

DevicePlan::Launch DevicePlan::prepare(Stream stream) {
  const Driver& driver = Driver::get();
  const bool capturing = is_capturing(stream);
  unsigned long long id = 0;  // unlike handles, ids are not used again
  // A capturing stream gives no id; in a capture, the handle stays what it is.
  if (!capturing) EXACTILE_DRIVER_CALL(driver, cuStreamGetId, stream, &id);
  const bool same_stream = capturing ? planner_captured_ && planning_stream_handle_ == stream
                                     : !planner_captured_ && planning_stream_ == id;
  const bool planned_here = planned_ != 0 && same_stream;
  if (upload_ != Upload::kDone && !planned_here) {
    if (planned_ != 0 && !uploaded_) record_planner();
    upload(stream, capturing);
  }
  if (!capturing) {
    const auto state = std::ranges::find(streams_, id, &StreamState::id);
    if (state != streams_.end()) {
      return {.counter = state->counter, .is_zero = leaves_zero_, .last_use = state->last_use};
    }
  }
  // The upload, or the planner, has set the list's own counter to 0.
  const bool is_zero = !std::exchange(list_counter_taken_, true);
  const DevicePtr counter = is_zero ? list_counter() : new_counter();
  if (capturing) {
    return {.counter = counter, .is_zero = is_zero && leaves_zero_, .last_use = nullptr};
  }
  streams_.push_back({.id = id, .counter = counter, .last_use = device_.make_event()});
  return {.counter = counter, .is_zero = is_zero, .last_use = streams_.back().last_use};
}

void DevicePlan::enqueue_planner(const Plan& plan) {
  const Driver& driver = Driver::get();
  const DeviceLengths& lengths = *plan.device_lengths;
  const auto stream = reinterpret_cast<Stream>(lengths.stream);
  const auto max_records = static_cast<int32_t>(plan.num_records);
  const int32_t blocks = planner_blocks(max_records, device_.major() >= 9);
  PlannerParams params{
      .spec = {.cu_seqlens_q = lengths.cu_seqlens_q,
               .cu_seqlens_k = lengths.cu_seqlens_k,
               .batch = plan.batch(),
               .tile_tokens = plan.tile_tokens,
               .block_n = plan.block_n,
               .mask = plan.mask},
      .order = plan.order,
      .records = reinterpret_cast<TileRecord*>(lists_.device + records_),
      .max_records = max_records,
      .num_records = reinterpret_cast<int32_t*>(lists_.device + planned_),
      .counter = reinterpret_cast<int32_t*>(list_counter()),
  };
  const LoadedKernel& planner = device_.planner();
  LaunchAttribute cluster{.id = kLaunchAttributeClusterDimension, .value = {}};
  const unsigned dimensions[3] = {static_cast<unsigned>(blocks), 1, 1};
  std::memcpy(cluster.value, dimensions, sizeof dimensions);
  const LaunchConfig config{
      .grid_x = static_cast<unsigned>(blocks),
      .grid_y = 1,
      .grid_z = 1,
      .block_x = static_cast<unsigned>(planner.shape.threads),
      .block_y = 1,
      .block_z = 1,
      .shared_bytes = static_cast<unsigned>(planner.shape.shared_bytes),
      .stream = stream,
      .attributes = &cluster,
      .num_attributes = blocks > 1,
  };
  void* arguments[] = {&params};
  EXACTILE_DRIVER_CALL(driver, cuLaunchKernelEx, &config, planner.handle, arguments, nullptr);
  planner_captured_ = is_capturing(stream);
  if (!planner_captured_) {
    EXACTILE_DRIVER_CALL(driver, cuStreamGetId, stream, &planning_stream_);
  }
  planning_stream_handle_ = stream;
  // No event yet: between the planner and the first launch it would keep them from overlapping.
  // Where the planner is captured, the graph's own order will do.
  upload_ = planner_captured_ ? Upload::kDone : Upload::kStarted;
}

void DevicePlan::record_planner() {
  uploaded_ = device_.make_event();
  EXACTILE_DRIVER_CALL(Driver::get(), cuEventRecord, uploaded_, planning_stream_handle_);
}

DevicePlan& DevicePlans::on(Device& device, const Plan& plan) {
  const auto found = std::ranges::find_if(
      devices_, [&](const auto& of_plan) { return &of_plan->device() == &device; });
  if (found != devices_.end()) return **found;
  return *devices_.emplace_back(std::make_unique<DevicePlan>(device, plan));
}

}  // namespace exactile::cuda
