// src/cuda/launch.cpp - a checked plan and its arrays -> tensor maps, Params, one launch.
#include "cuda/launch.hpp"

#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "base/launch_params.hpp"
#include "cuda/plan_memory.hpp"
#include "cuda/rows.hpp"

namespace exactile::cuda {
namespace {

constexpr int64_t kAlignment = 16;  // bytes: of a row, for 16-byte loads and for TMA

bool is_aligned(const ArrayRef& a) {
  bool aligned = reinterpret_cast<uintptr_t>(a.data) % kAlignment == 0;
  for (int i = 0; i + 1 < a.rank; ++i) {
    aligned = aligned && used_stride(a, i) * dtype_bytes(a.dtype) % kAlignment == 0;
  }
  return aligned;
}

/// TMA steps forwards only, by less than 2^40 bytes, over at most 2^32 elements.
bool fits_tma(const ArrayRef& a) {
  bool fits = true;
  for (int i = 0; i + 1 < a.rank; ++i) {
    const int64_t stride = used_stride(a, i);
    fits = fits && stride > 0 && stride < (int64_t{1} << 40) / dtype_bytes(a.dtype);
  }
  return fits;
}

/// Keys in a TMA box of a page: it divides a page and a block. The swizzle's pattern is 8 rows.
int32_t page_box(const Plan& plan, int32_t block_n) { return std::gcd(plan.page_size, block_n); }
bool fits_boxes(const Plan& plan, int32_t block_n) {
  return !plan.is_paged() || page_box(plan, block_n) % 8 == 0;
}

/// Over (head_dim, heads, tokens), or (head_dim, heads, keys of a page, pages). Nothing is promoted
/// in the second-level cache: loads of 256 bytes for 128 make decode steps 7 % slower.
TensorMap make_tensor_map(const ArrayRef& a, const void* fallback, int32_t chunk, int32_t box_heads,
                          int32_t box_tokens) {
  const bool is_empty = a.shape[0] == 0;  // never loaded from, yet a map needs an address
  const auto bytes = static_cast<uint64_t>(dtype_bytes(a.dtype));
  uint64_t sizes[kMaxRank] = {}, strides_bytes[kMaxRank] = {};
  for (int i = 0; i < a.rank; ++i) {  // from the last dimension on
    const int of = a.rank - 1 - i;
    sizes[i] = std::max<uint64_t>(a.shape[of], 1);
    if (i > 0) strides_bytes[i - 1] = used_stride(a, of) * bytes;
  }
  const uint32_t box[kMaxRank] = {static_cast<uint32_t>(chunk), static_cast<uint32_t>(box_heads),
                                  static_cast<uint32_t>(box_tokens), 1};
  const uint32_t steps[kMaxRank] = {1, 1, 1, 1};
  const int dtype = a.dtype == Dtype::kFloat16 ? kTensorMapFloat16 : kTensorMapBfloat16;
  const int swizzle = chunk * bytes == 128 ? kTensorMapSwizzle128B : kTensorMapSwizzle64B;
  TensorMap map;
  EXACTILE_DRIVER_CALL(Driver::get(), cuTensorMapEncodeTiled, &map, dtype, a.rank,
                       const_cast<void*>(is_empty ? fallback : a.data), sizes, strides_bytes, box,
                       steps, kTensorMapInterleaveNone, swizzle, kTensorMapL2PromotionNone,
                       kTensorMapFillZeros);
  return map;
}

SplitPrefillParams make_params(const Plan& plan, const ScheduleMemory& lists,
                               const PrefillArgs& args, const Shape& shape) {
  SplitPrefillParams params{};
  static_cast<CommonParams&>(params) = common_params(plan, args, lists.cu_seqlens_q);
  params.cu_seqlens_q = lists.cu_seqlens_q;
  params.cu_seqlens_k = lists.cu_seqlens_k;
  params.timeline = static_cast<TimelineRecord*>(args.extras.timeline);
  params.page_box = plan.is_paged() ? page_box(plan, shape.block_n) : 0;
  return params;
}

/// Params of the plan's policy, by value as the kernel takes them.
struct Schedule {
  alignas(16) unsigned char bytes[sizeof(CountedList)];
};

Schedule make_schedule(const Plan& plan, const ScheduleMemory& lists) {
  Schedule schedule;
  with_policy(plan.scheduler, [&]<class Policy>() {
    const auto params = schedule_params<typename Policy::Params>(plan, lists);
    static_assert(sizeof params <= sizeof schedule);
    std::memcpy(schedule.bytes, &params, sizeof params);
  });
  return schedule;
}

DevicePlans& memory_of(const Plan& plan) { return static_cast<DevicePlans&>(*plan.memory); }

KernelSpec spec_of(const Plan& plan, const RunOptions& options, Family family, Probe probe) {
  return {.instance = instance_spec(plan, options),
          .family = family,
          .mask = mask_kind(plan.mask, plan.packed_len > 0),
          .probe = probe};
}

/// That a kernel's tiles are those of the plan.
void check_tiles(const Plan& plan, Family family, const Shape& shape) {
  // A part of a tile is of whole tokens.
  const bool takes_tiles = traits_of(family).splits_tiles
                               ? !plan.pack_gqa || plan.group() <= shape.block_m
                               : plan.block_m == shape.block_m;
  if (!takes_tiles) {
    throw std::invalid_argument("varlen_prefill: expected a plan with tiles of " +
                                std::to_string(shape.block_m) + " rows for the " +
                                name_of(family, kFamilyNames) + " kernels, got one with " +
                                std::to_string(plan.block_m) + ": plan on the device that runs it");
  }
}

/// Enqueues the merge of a plan's split tiles behind their parts.
void merge_splits(Device& device, const DevicePlan& memory, const Plan& plan,
                  const SplitPrefillParams& params, Stream stream) {
  SplitMergeParams merge{.tiles = memory.split_tiles(),
                         .num_tiles = static_cast<int32_t>(plan.split_tiles.size()),
                         .num_rows = plan.merged_rows,
                         .num_heads = plan.num_heads_q,
                         .tile_heads = params.tile_heads,
                         .head_dim_v = plan.head_dim_v,
                         .scale_log2 = params.scale_log2,
                         .scores = params.scores,
                         .partial = params.split.partial,
                         .out = params.out,
                         .lse = params.lse,
                         .lse_head_stride = params.lse_head_stride};
  void* arguments[] = {&merge};
  launch_rows(device, MergeSplitsSpec{plan.dtype}, plan.merged_rows, stream, arguments);
}

}  // namespace

std::string refusal(const Plan& plan, const PrefillArgs& args) {
  if (plan.device_lengths && plan.device_lengths->device != args.q.device.id) {
    return "expected arrays on CUDA " + std::to_string(plan.device_lengths->device) +
           ", where cu_seqlens are, got them on " + to_string(args.q.device);
  }
  const std::pair<const ArrayRef&, const char*> arrays[] = {
      {args.q, "q"}, {args.k, "k"}, {args.v, "v"}, {args.out, "out"}};
  for (const auto& [array, name] : arrays) {
    if (array.shape[0] > 0 && !is_aligned(array)) {
      return std::string("expected rows of ") + name +
             " to begin at multiples of 16 bytes on the cuda backend (address and strides), got "
             "address " +
             std::to_string(reinterpret_cast<uintptr_t>(array.data)) + " and strides of (" +
             std::to_string(array.strides[0]) + ", " + std::to_string(array.strides[1]) +
             ") elements";
    }
  }
  return {};
}

int64_t timeline_bytes(const Plan& plan) {
  if (plan.splits_keys()) {
    throw std::invalid_argument("timeline: expected a plan with num_splits=1, got num_splits=" +
                                std::to_string(plan.num_splits));
  }
  const int64_t records = plan.launched + int64_t{plan.tile_heads} * plan.total_q();
  if (records > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument("timeline: expected at most 2147483647 work-groups and (head, " +
                                std::string("token) pairs, got ") + std::to_string(records));
  }
  return records * static_cast<int64_t>(sizeof(TimelineRecord));
}

void enqueue_planner(const Plan& plan) {
  if (plan.launched == 0) return;
  Device& device = Device::get(plan.device_lengths->device);
  const ContextScope scope(device);
  memory_of(plan).on(device, plan).enqueue_planner(plan);
}

void launch(const Plan& plan, const PrefillArgs& args) {
  Device& device = Device::get(args.q.device.id);
  const bool any_array = !fits_tma(args.q) || !fits_tma(args.k) || !fits_tma(args.v) ||
                         !fits_boxes(plan, plan.block_n);
  const Family family = device.family(any_array);
  if (plan.launched == 0) return;
  if (args.extras.timeline && args.extras.timeline_bytes < timeline_bytes(plan)) {
    throw std::invalid_argument("varlen_prefill: expected a timeline of " +
                                std::to_string(timeline_bytes(plan)) + " bytes, got " +
                                std::to_string(args.extras.timeline_bytes));
  }
  const ContextScope scope(device);
  std::unique_lock lock(memory_of(plan).mutex());
  DevicePlan& memory = memory_of(plan).on(device, plan);
  const Probe probe = args.extras.timeline ? Probe::kTimeline : Probe::kNoProbe;
  const LoadedKernel*& kernel = memory.kernels[static_cast<int>(family)][static_cast<int>(probe)]
                                              [static_cast<int>(scores_kind(args.options))];
  if (!kernel) {
    lock.unlock();  // it may have to be compiled, which takes a second
    const LoadedKernel& loaded = device.kernel(spec_of(plan, args.options, family, probe));
    lock.lock();
    kernel = &loaded;
  }
  const Shape& shape = kernel->shape;
  check_tiles(plan, family, shape);
  const Driver& driver = Driver::get();
  const auto stream = reinterpret_cast<Stream>(args.options.stream);
  TensorMap maps[3];
  if (shape.chunk > 0) {  // before prepare(): what it gives has to be used
    const void* const q = args.q.data;
    maps[0] = make_tensor_map(args.q, q, shape.chunk, plan.heads_per_tile(), plan.tile_tokens);
    const int32_t box_n = plan.is_paged() ? page_box(plan, shape.block_n) : shape.box_n;
    maps[1] = make_tensor_map(args.k, q, shape.chunk, 1, box_n);
    maps[2] = make_tensor_map(args.v, q, shape.chunk, 1, box_n);
  }
  const LaunchMemory taken = memory.prepare(stream);
  ScheduleMemory lists = memory.lists(plan);
  lists.counter = reinterpret_cast<int32_t*>(taken.counter);
  SplitPrefillParams params = make_params(plan, lists, args, shape);
  if (plan.splits_keys()) {
    params.split = {.splits = memory.splits(), .partial = partial_results(plan, taken.partial)};
  }
  Schedule schedule = make_schedule(plan, lists);
  void* arguments[] = {&maps[0], &maps[1], &maps[2], &params, &schedule};
  if (taken.counter && !taken.is_zero) {
    EXACTILE_DRIVER_CALL(driver, cuMemsetD32Async, taken.counter, 0, 1, stream);
  }
  // Kernels begin by waiting for the planner: they may be resident before it ends.
  LaunchAttribute overlap{.id = kLaunchAttributeProgrammaticStreamSerialization, .value = {1}};
  const LaunchConfig config{
      .grid_x = static_cast<unsigned>(plan.launched),
      .grid_y = 1,
      .grid_z = 1,
      .block_x = static_cast<unsigned>(shape.threads),
      .block_y = 1,
      .block_z = 1,
      .shared_bytes = static_cast<unsigned>(shape.shared_bytes),
      .stream = stream,
      .attributes = &overlap,
      .num_attributes = plan.device_lengths.has_value(),
  };
  EXACTILE_DRIVER_CALL(driver, cuLaunchKernelEx, &config, kernel->handle,
                       shape.chunk > 0 ? arguments : arguments + 3, nullptr);
  if (plan.splits_keys()) merge_splits(device, memory, plan, params, stream);
  if (taken.last_use) EXACTILE_DRIVER_CALL(driver, cuEventRecord, taken.last_use, stream);
}

}  // namespace exactile::cuda
