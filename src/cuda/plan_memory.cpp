// src/cuda/plan_memory.cpp - uploads a plan's lists, hands out its counters, frees them in time.
#include "plan_memory.hpp"

#include <algorithm>
#include <cstring>
#include <exactile/cuda/planner_params.hpp>
#include <stdexcept>
#include <utility>

#include "../plan.hpp"

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
    : device_(device), needs_counter_(plan.scheduler == SchedulerKind::kValidOnlyPersistent) {
  if (plan.device_lengths) {
    const auto records = static_cast<int32_t>(plan.num_records);
    const int32_t blocks = planner_blocks(records, device.multiprocessors());
    records_ = place(std::max<std::size_t>(records, 1) * sizeof(TileRecord));
    planned_ = place(sizeof(int32_t));  // not the first: its offset is not 0
    scratch_ = place(planner_scratch_size(blocks) * sizeof(int32_t));
    lists_ = device_.acquire(bytes_);
    return;
  }
  const std::size_t cu_bytes = plan.cu_seqlens_q.size() * sizeof(int32_t);
  const std::size_t record_bytes = plan.records ? plan.num_records * sizeof(TileRecord) : 0;
  cu_q_ = place(cu_bytes);
  cu_k_ = place(cu_bytes);
  records_ = place(record_bytes);
  lists_ = device_.acquire(bytes_);
  std::memcpy(lists_.host + cu_q_, plan.cu_seqlens_q.data(), cu_bytes);
  std::memcpy(lists_.host + cu_k_, plan.cu_seqlens_k.data(), cu_bytes);
  if (record_bytes > 0) std::memcpy(lists_.host + records_, plan.records.get(), record_bytes);
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
  const DevicePtr zero = planned_here ? std::exchange(zero_counter_, 0) : 0;
  if (capturing) {
    return {
        .counter = zero ? zero : new_counter(), .counter_is_zero = zero != 0, .last_use = nullptr};
  }
  auto state = std::ranges::find(streams_, id, &StreamState::id);
  if (state == streams_.end()) {
    streams_.push_back(
        {.id = id, .counter = zero ? zero : new_counter(), .last_use = device_.make_event()});
    state = streams_.end() - 1;
  }
  return {.counter = state->counter,
          .counter_is_zero = zero != 0 && zero == state->counter,
          .last_use = state->last_use};
}

void DevicePlan::enqueue_planner(const Plan& plan) {
  const Driver& driver = Driver::get();
  const DeviceLengths& lengths = *plan.device_lengths;
  const auto stream = reinterpret_cast<Stream>(lengths.stream);
  const auto max_records = static_cast<int32_t>(plan.num_records);
  const int32_t blocks = planner_blocks(max_records, device_.multiprocessors());
  zero_counter_ = new_counter();
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
      .counter = reinterpret_cast<int32_t*>(zero_counter_),
      .scratch = reinterpret_cast<int32_t*>(lists_.device + scratch_),
  };
  if (blocks > 1) {
    EXACTILE_DRIVER_CALL(driver, cuMemsetD32Async, lists_.device + scratch_, 0,
                         planner_scratch_size(blocks), stream);
  }
  const LoadedKernel& planner = device_.planner();
  LaunchAttribute cooperative{.id = kLaunchAttributeCooperative, .value = {1}};
  const LaunchConfig config{
      .grid_x = static_cast<unsigned>(blocks),
      .grid_y = 1,
      .grid_z = 1,
      .block_x = static_cast<unsigned>(planner.shape.threads),
      .block_y = 1,
      .block_z = 1,
      .shared_bytes = static_cast<unsigned>(planner.shape.shared_bytes),
      .stream = stream,
      .attributes = &cooperative,
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

DevicePlan& PlanMemory::on(Device& device, const Plan& plan) {
  const auto found = std::ranges::find_if(
      devices_, [&](const auto& of_plan) { return &of_plan->device() == &device; });
  if (found != devices_.end()) return **found;
  return *devices_.emplace_back(std::make_unique<DevicePlan>(device, plan));
}

}  // namespace exactile::cuda
