// src/sycl/launch.cpp - a checked plan and its arrays -> Params, one launch.
#include "sycl/launch.hpp"

#include <exactile/sycl/params.hpp>
#include <exactile/sycl/xmx/traits.hpp>

#include "sycl/loaded_kernels.hpp"
#include "sycl/plan_memory.hpp"

namespace exactile::sycl {
namespace {

Queue* queue_of(const PrefillArgs& args) { return reinterpret_cast<Queue*>(args.options.stream); }

PrefillParams make_params(const Plan& plan, const PrefillArgs& args) {
  PrefillParams params{};
  static_cast<CommonParams&>(params) = common_params(plan, args, nullptr);
  params.work_groups = args.extras.work_groups;
  return params;
}

KernelSpec spec_of(const Plan& plan, bool count) {
  return {.instance = instance_spec(plan), .kernel = plan.sycl_kernel, .count = count};
}

/// What a kernel uses until it is done.
struct Held {
  std::shared_ptr<void> arrays;
  std::shared_ptr<PlanMemory> memory;
};

/// "expected tokens and heads of q on 64-byte boundaries ...", or empty.
std::string refuse_alignment(const char* name, const ArrayRef& array) {
  const Tensor<void*> tensor = tensor_of<void*>(array);
  if (xmx::is_reachable(tensor)) return "";
  return std::string("expected tokens and heads of ") + name +
         " on 64-byte boundaries for the XMX kernel, got strides of " +
         std::to_string(tensor.token_stride) + " and " + std::to_string(tensor.head_stride) +
         " elements from address " + std::to_string(reinterpret_cast<uint64_t>(tensor.data)) +
         "; copy the array, or set EXACTILE_SYCL_KERNEL=portable before the plan is made";
}

}  // namespace

std::string refusal(const Plan& plan, const PrefillArgs& args) {
  const std::pair<const char*, const ArrayRef&> arrays[] = {
      {"q", args.q}, {"k", args.k}, {"v", args.v}, {"out", args.out}};
  if (plan.sycl_kernel != SyclKernel::kPortable) {
    for (const auto& [name, array] : arrays) {
      const std::string refused = array.shape[0] > 0 ? refuse_alignment(name, array) : "";
      if (!refused.empty()) return refused;
    }
  }
  if (!queue_of(args)) return "expected a SYCL queue to run on, got none";
  const RuntimeTable& table = runtime();
  for (const auto& [name, array] : arrays) {
    bool reachable = array.shape[0] == 0;
    if (!reachable) check(table, table.is_reachable(queue_of(args), array.data, &reachable));
    if (reachable) continue;
    return std::string("expected ") + name +
           " in memory of the queue's context, got an array of another context; make both from one "
           "queue, or copy the array";
  }
  return "";
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
  Queue* const queue = queue_of(args);
  DevicePlan& memory = static_cast<DevicePlans&>(*plan.memory).on(queue, plan);
  const bool count = args.extras.work_groups;
  std::atomic<const Kernel*>& kernel = memory.kernels[count];
  if (!kernel) kernel = loaded_kernel(queue, memory.place(), spec_of(plan, count));
  Counter* const counter = has_counter(plan.scheduler) ? memory.counter(queue) : nullptr;
  const PrefillParams params = make_params(plan, args);
  const std::string schedule = sycl::schedule(plan, memory.lists(counter));
  const Launch launch{
      .kernel = kernel,
      .params = &params,
      .params_bytes = sizeof params,
      .schedule = schedule.data(),
      .schedule_bytes = schedule.size(),
      .counter = counter,
      .work_groups = static_cast<std::size_t>(plan.launched),
      .threads = static_cast<std::size_t>(
          shape_of(plan.sycl_kernel, plan.dtype, plan.head_dim, plan.head_dim_v).threads),
      .held = new Held{.arrays = args.extras.arrays, .memory = plan.memory},
      .release = [](void* held) { delete static_cast<Held*>(held); }};
  check(table, table.launch(queue, &launch));
}

}  // namespace exactile::sycl
