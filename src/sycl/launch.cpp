// src/sycl/launch.cpp - a checked plan and its arrays -> Params, as bytes for the runtime's module.
#include "sycl/launch.hpp"

#include <exactile/sycl/params.hpp>
#include <exactile/sycl/xmx/traits.hpp>

#include "base/launch_params.hpp"

namespace exactile::sycl {
namespace {

template <class T>
std::string as_bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

/// Bytes of cu_seqlens_q, and of cu_seqlens_k; records behind both are aligned to 16.
std::size_t cu_bytes(const Plan& plan) {
  return ceil_div<std::size_t>(plan.cu_seqlens_q.size() * sizeof(int32_t), sizeof(TileRecord)) *
         sizeof(TileRecord);
}

}  // namespace

std::string refusal(const Plan& plan, const PrefillArgs& args) {
  if (plan.sycl_kernel == SyclKernel::kPortable) return "";
  const std::pair<const char*, const ArrayRef&> arrays[] = {
      {"q", args.q}, {"k", args.k}, {"v", args.v}, {"out", args.out}};
  for (const auto& [name, array] : arrays) {
    const Tensor<void*> tensor = tensor_of<void*>(array);
    if (array.shape[0] == 0 || xmx::is_reachable(tensor)) continue;
    return std::string("expected tokens and heads of ") + name +
           " on 64-byte boundaries for the XMX kernel, got strides of " +
           std::to_string(tensor.token_stride) + " and " + std::to_string(tensor.head_stride) +
           " elements from address " + std::to_string(reinterpret_cast<uint64_t>(tensor.data)) +
           "; copy the array, or set EXACTILE_SYCL_KERNEL=portable before the plan is made";
  }
  return "";
}

std::string lists(const Plan& plan) {
  const std::size_t record_bytes = plan.records ? plan.num_records * sizeof(TileRecord) : 0;
  const auto text = [](const auto* data, std::size_t bytes) {
    return std::string_view(reinterpret_cast<const char*>(data), bytes);
  };
  std::string bytes(text(plan.cu_seqlens_q.data(), plan.cu_seqlens_q.size() * sizeof(int32_t)));
  bytes.resize(cu_bytes(plan));
  bytes += text(plan.cu_seqlens_k.data(), plan.cu_seqlens_k.size() * sizeof(int32_t));
  bytes.resize(2 * cu_bytes(plan));
  return bytes += text(plan.records.get(), record_bytes);
}

std::string params(const Plan& plan, const PrefillArgs& args) {
  PrefillParams params{};
  static_cast<CommonParams&>(params) = common_params(plan, args);
  params.work_groups = args.work_groups;
  return as_bytes(params);
}

std::string schedule(const Plan& plan, uint64_t lists, uint64_t counter) {
  const auto at = [&](std::size_t offset) { return lists + offset; };
  const ScheduleMemory memory{
      .cu_seqlens_q = reinterpret_cast<const int32_t*>(at(0)),
      .cu_seqlens_k = reinterpret_cast<const int32_t*>(at(cu_bytes(plan))),
      .records = reinterpret_cast<const TileRecord*>(at(2 * cu_bytes(plan))),
      .counter = reinterpret_cast<int32_t*>(counter)};
  return with_policy(plan.scheduler, [&]<class Policy>() {
    return as_bytes(schedule_params<typename Policy::Params>(plan, memory));
  });
}

}  // namespace exactile::sycl
