// src/sycl/launch.cpp - a checked plan and its arrays -> Params, one launch.
#include "sycl/launch.hpp"

#include <exactile/sycl/params.hpp>
#include <exactile/sycl/xmx/traits.hpp>

#include "base/used_pages.hpp"
#include "sycl/loaded_kernels.hpp"
#include "sycl/plan_memory.hpp"
#include "sycl/reachable.hpp"

namespace exactile::sycl {
namespace {

PrefillParams make_params(const Plan& plan, const PrefillArgs& args, const ScheduleMemory& lists) {
  PrefillParams params{};
  static_cast<CommonParams&>(params) = common_params(plan, args, lists.cu_seqlens_q);
  params.work_groups = args.extras.work_groups;
  return params;
}

/// Sinks alone take the kernel of all variants: one compilation, which takes seconds here, less.
KernelSpec spec_of(const Plan& plan, const PrefillArgs& args) {
  KernelSpec spec{.instance = instance_spec(plan, args.options),
                  .kernel = plan.sycl_kernel,
                  .count = args.extras.work_groups != nullptr};
  if (spec.instance.scores == ScoresKind::kSinks) spec.instance.scores = ScoresKind::kGeneral;
  return spec;
}

Wanted wanted_by(const Plan& plan) {
  return {.dtype = plan.dtype,
          .head_dim = plan.head_dim,
          .head_dim_v = plan.head_dim_v,
          .page_size = plan.page_size};
}

/// "expected tokens and heads of q on 64-byte boundaries ...", or empty.
std::string refuse_alignment(const char* name, const ArrayRef& array) {
  const KvTensor tensor = kv_tensor_of(array);
  if (xmx::is_reachable(tensor)) return "";
  const bool paged = array.rank > 3;
  return std::string("expected ") + (paged ? "pages, " : "") + "tokens and heads of " + name +
         " on 64-byte boundaries for the XMX kernel, got strides of " +
         (paged ? std::to_string(tensor.page_stride) + ", " : "") +
         std::to_string(tensor.token_stride) + " and " + std::to_string(tensor.head_stride) +
         " elements from address " + std::to_string(reinterpret_cast<uint64_t>(tensor.data)) +
         "; copy the array, or set EXACTILE_SYCL_KERNEL=portable before the plan is made";
}

}  // namespace

std::string refusal(const Plan& plan, const PrefillArgs& args) {
  struct Named {
    const char* name;
    const ArrayRef& array;
  };
  const Named tensors[] = {{"q", args.q}, {"k", args.k}, {"v", args.v}, {"out", args.out}};
  if (plan.sycl_kernel != SyclKernel::kPortable) {
    for (const auto& [name, array] : tensors) {
      const std::string refused = array.has_elements() ? refuse_alignment(name, array) : "";
      if (!refused.empty()) return refused;
    }
  }
  Queue* const queue = queue_at(args.options.stream);
  std::string refused = refuse_no_queue(queue);
  for (const auto& [name, array] : tensors) {
    if (refused.empty()) refused = refuse_context(queue, name, array);
  }
  const RunOptions& options = args.options;
  const std::pair<const char*, const std::optional<ArrayRef>&> others[] = {
      {"block_table", options.block_table},
      {"sinks", options.sinks},
      {"alibi_slopes", options.alibi_slopes}};
  for (const auto& [name, array] : others) {
    if (refused.empty() && array) refused = refuse_context(queue, name, *array);
  }
  return refused;
}

void check_pages(const Plan& plan, const PrefillArgs& args) {
  if (plan.launched == 0) return;
  const RuntimeTable& table = runtime();
  const Queue* const queue = queue_at(args.options.stream);
  check_used_pages(plan, args, plan.seqused_k, [&](void* to, const void* from, std::size_t bytes) {
    check(table, table.read_memory(queue, from, bytes, to));
  });
}

std::string schedule(const Plan& plan, const ScheduleMemory& lists) {
  return with_policy(plan.scheduler, [&]<class Policy>() {
    const auto params = schedule_params<typename Policy::Params>(plan, lists);
    return std::string(reinterpret_cast<const char*>(&params), sizeof params);
  });
}

void launch(const Plan& plan, const PrefillArgs& args) {
  if (plan.launched == 0) return;
  const RuntimeTable& table = runtime();
  Queue* const queue = queue_at(args.options.stream);
  DevicePlan& memory = static_cast<DevicePlans&>(*plan.memory).on(queue, plan);
  const bool count = args.extras.work_groups;
  std::atomic<const Kernel*>& kernel =
      memory.kernels[static_cast<int>(scores_kind(args.options))][count];
  if (!kernel) kernel = loaded_kernel(queue, memory.place(), spec_of(plan, args));
  Counter* const counter = has_counter(plan.scheduler) ? memory.counter(queue) : nullptr;
  const ScheduleMemory lists = memory.lists(counter);
  const PrefillParams params = make_params(plan, args, lists);
  const std::string schedule = sycl::schedule(plan, lists);
  const Launch launch{
      .kernel = kernel,
      .params = &params,
      .params_bytes = sizeof params,
      .schedule = schedule.data(),
      .schedule_bytes = schedule.size(),
      .counter = counter,
      .work_groups = static_cast<std::size_t>(plan.launched),
      .threads = static_cast<std::size_t>(shape_of(plan.sycl_kernel, wanted_by(plan)).threads),
      .held = new Held{.arrays = args.extras.arrays, .memory = plan.memory},
      .release = Held::release};
  check(table, table.launch(queue, &launch));
}

}  // namespace exactile::sycl
