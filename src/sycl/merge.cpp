// src/sycl/merge.cpp - see merge.hpp.
#include "sycl/merge.hpp"

#include <exactile/sycl/merge_rows.hpp>
#include <memory>

#include "sycl/loaded_kernels.hpp"
#include "sycl/reachable.hpp"

namespace exactile::sycl {
namespace {

Queue* queue_of(const MergeArgs& args) { return reinterpret_cast<Queue*>(args.stream); }

/// What the kernel uses until it is done.
struct Held {
  std::shared_ptr<void> arrays;
  std::shared_ptr<DeviceMemory> parts;
};

/// Those that the parameters have no room for, in the device's memory.
std::shared_ptr<DeviceMemory> upload(const RuntimeTable& table, const Queue* queue,
                                     const std::vector<MergePart>& parts) {
  if (parts.empty()) return nullptr;
  DeviceMemory* memory = nullptr;
  check(table, table.make_memory(queue, parts.data(), parts.size() * sizeof(MergePart), &memory));
  return {memory, table.free_memory};
}

}  // namespace

std::string merge_refusal(const MergeArgs& args) {
  Queue* const queue = queue_of(args);
  if (!queue) return "expected a SYCL queue to run on, got none";
  std::string refused = refuse_context(queue, "out", args.out);
  for (const MergeArgs::Part& part : args.parts) {
    if (refused.empty()) refused = refuse_context(queue, part.out_name, part.out);
    if (refused.empty()) refused = refuse_context(queue, part.lse_name, part.lse);
  }
  return refused;
}

void merge(const MergeArgs& args) {
  const MergeRows rows{.count = args.total_q() * args.num_heads()};
  if (rows.count == 0) return;
  const RuntimeTable& table = runtime();
  Queue* const queue = queue_of(args);
  const Place* place = nullptr;
  check(table, table.place_of(queue, &place));
  std::vector<MergePart> others;
  MergeParams params = merge_params(args, others);
  const auto uploaded = upload(table, queue, others);
  if (uploaded) params.others = static_cast<MergePart*>(table.address_of(uploaded.get()));
  const Launch launch{.kernel = loaded_kernel(queue, place, MergeSpec{args.dtype}),
                      .params = &params,
                      .params_bytes = sizeof params,
                      .schedule = &rows,
                      .schedule_bytes = sizeof rows,
                      .counter = nullptr,
                      .work_groups = static_cast<std::size_t>(
                          ceil_div<int64_t>(rows.count, MergeRows::kOfWorkGroup)),
                      .threads = MergeRows::kThreads,
                      .held = new Held{.arrays = args.arrays, .parts = uploaded},
                      .release = [](void* held) { delete static_cast<Held*>(held); }};
  check(table, table.launch(queue, &launch));
}

}  // namespace exactile::sycl
