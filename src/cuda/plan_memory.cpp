// src/cuda/plan_memory.cpp - a plan's lists: their layout, their copy on the host, the planner on
// the device.
#include "cuda/plan_memory.hpp"

#include <algorithm>
#include <cstring>
#include <exactile/cuda/planner_params.hpp>
#include <stdexcept>
#include <utility>

#include "base/policies.hpp"

namespace exactile::cuda {

ListLayout::ListLayout(const Plan& plan) {
  const auto place = [&](std::size_t size) {
    constexpr std::size_t kLineBytes = 128;  // lists begin at cache lines
    const std::size_t offset = ceil_div<std::size_t>(bytes, kLineBytes) * kLineBytes;
    bytes = offset + size;
    return offset;
  };
  if (plan.device_lengths) {
    records = place(std::max<std::size_t>(plan.num_records, 1) * sizeof(TileRecord));
    planned = place(sizeof(int32_t));  // not the first: its offset is not 0
  } else {
    cu_q = place(plan.cu_seqlens_q.size() * sizeof(int32_t));
    cu_k = place(plan.cu_seqlens_k.size() * sizeof(int32_t));
    used_q = place(plan.seqused_q.size() * sizeof(int32_t));
    used_k = place(plan.seqused_k.size() * sizeof(int32_t));
    records = place(plan.records ? plan.num_records * sizeof(TileRecord) : 0);
    splits = place(plan.splits.size() * sizeof(KeySplit));
    split_tiles = place(plan.split_tiles.size() * sizeof(SplitTile));
  }
  counter = place(sizeof(int32_t));
}

PartialResults partial_results(const Plan& plan, DevicePtr memory) {
  auto* const out = reinterpret_cast<float*>(memory);
  return {.out = out,
          .rows = reinterpret_cast<RowState*>(out + plan.partial_rows * plan.head_dim_v)};
}

std::size_t partial_bytes(const Plan& plan) {
  return plan.partial_rows * (plan.head_dim_v * sizeof(float) + sizeof(RowState));
}

DevicePlan::DevicePlan(Device& device, const Plan& plan)
    : device_(device),
      layout_(plan),
      lists_(device.acquire(layout_.bytes)),
      counter_(has_counter(plan.scheduler) ? lists_.device + layout_.counter : 0),
      upload_(device),
      of_streams_(device, counter_, /*leaves_zero=*/!plan.user_scheduler, partial_bytes(plan)) {
  if (!plan.device_lengths) fill(plan);
}

/// The host's copy.
void DevicePlan::fill(const Plan& plan) {
  const auto put = [&](std::size_t offset, const void* data, std::size_t size) {
    if (size > 0) std::memcpy(lists_.host + offset, data, size);
  };
  put(layout_.cu_q, plan.cu_seqlens_q.data(), plan.cu_seqlens_q.size() * sizeof(int32_t));
  put(layout_.cu_k, plan.cu_seqlens_k.data(), plan.cu_seqlens_k.size() * sizeof(int32_t));
  put(layout_.used_q, plan.seqused_q.data(), plan.seqused_q.size() * sizeof(int32_t));
  put(layout_.used_k, plan.seqused_k.data(), plan.seqused_k.size() * sizeof(int32_t));
  if (plan.records) {
    put(layout_.records, plan.records.get(), plan.num_records * sizeof(TileRecord));
  }
  put(layout_.splits, plan.splits.data(), plan.splits.size() * sizeof(KeySplit));
  put(layout_.split_tiles, plan.split_tiles.data(), plan.split_tiles.size() * sizeof(SplitTile));
  constexpr int32_t kZero = 0;
  put(layout_.counter, &kZero, sizeof kZero);
}

DevicePlan::~DevicePlan() {
  std::vector<Event> last_uses;
  try {
    if (const Event event = upload_.last_event(of_streams_.launched())) last_uses.push_back(event);
  } catch (const std::runtime_error&) {  // at exit the driver may be gone
    return;                              // not used again
  }
  of_streams_.release({lists_}, std::move(last_uses));
}

ScheduleMemory DevicePlan::lists(const Plan& plan) const {
  if (plan.device_lengths) {
    return {.cu_seqlens_q = plan.device_lengths->cu_seqlens_q,
            .cu_seqlens_k = plan.device_lengths->cu_seqlens_k,
            .seqused_q = plan.device_lengths->seqused_q,
            .seqused_k = plan.device_lengths->seqused_k,
            .records = pointer<TileRecord>(layout_.records),
            .planned = pointer<int32_t>(layout_.planned)};
  }
  const auto used = [&](const std::vector<int32_t>& of, std::size_t offset) {
    return of.empty() ? nullptr : pointer<int32_t>(offset);
  };
  return {.cu_seqlens_q = pointer<int32_t>(layout_.cu_q),
          .cu_seqlens_k = plan.is_paged() ? nullptr : pointer<int32_t>(layout_.cu_k),
          .seqused_q = used(plan.seqused_q, layout_.used_q),
          .seqused_k = used(plan.seqused_k, layout_.used_k),
          .records = pointer<TileRecord>(layout_.records)};
}

LaunchMemory DevicePlan::prepare(Stream stream) {
  const LaunchStream launch(stream);
  upload_.before_launch(launch, lists_, layout_.bytes);
  return of_streams_.take(launch);
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
               .mask = plan.mask,
               .seqused_q = lengths.seqused_q,
               .seqused_k = lengths.seqused_k},
      .max_len_k = plan.max_len_k,
      .order = plan.order,
      .records = pointer<TileRecord>(layout_.records),
      .max_records = max_records,
      .num_records = pointer<int32_t>(layout_.planned),
      .counter = reinterpret_cast<int32_t*>(counter_),
  };
  const LoadedKernel& planner = device_.kernel(PlannerSpec{});
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
  upload_.planner_enqueued(LaunchStream(stream));
}

DevicePlan& DevicePlans::on(Device& device, const Plan& plan) {
  const auto found = std::ranges::find_if(
      devices_, [&](const auto& of_plan) { return &of_plan->device() == &device; });
  if (found != devices_.end()) return **found;
  return *devices_.emplace_back(std::make_unique<DevicePlan>(device, plan));
}

}  // namespace exactile::cuda
