// src/sycl/plan_memory.cpp - a plan's lists: packed, uploaded, found again.
#include "sycl/plan_memory.hpp"

#include <algorithm>
#include <string_view>

namespace exactile::sycl {
namespace {

/// cu_seqlens_q, cu_seqlens_k, records; each of the first two in `cu_bytes`.
std::string pack_lists(const Plan& plan, std::size_t cu_bytes) {
  const auto text = [](const auto* data, std::size_t bytes) {
    return std::string_view(reinterpret_cast<const char*>(data), bytes);
  };
  std::string bytes(text(plan.cu_seqlens_q.data(), plan.cu_seqlens_q.size() * sizeof(int32_t)));
  bytes.resize(cu_bytes);
  bytes += text(plan.cu_seqlens_k.data(), plan.cu_seqlens_k.size() * sizeof(int32_t));
  bytes.resize(2 * cu_bytes);
  return bytes +=
         text(plan.records.get(), plan.records ? plan.num_records * sizeof(TileRecord) : 0);
}

}  // namespace

DevicePlan::DevicePlan(const Plan& plan, const Queue* queue, const Place* place)
    : runtime_(runtime()),
      place_(place),
      // Records, behind both, are aligned to 16.
      cu_bytes_(
          ceil_div<std::size_t>(plan.cu_seqlens_q.size() * sizeof(int32_t), sizeof(TileRecord)) *
          sizeof(TileRecord)) {
  const std::string lists = pack_lists(plan, cu_bytes_);
  check(runtime_, runtime_.make_memory(queue, lists.data(), lists.size(), &memory_));
}

Counter* DevicePlan::counter(const Queue* queue) const {
  Counter* counter = nullptr;
  check(runtime_, runtime_.counter_of(memory_, queue, &counter));
  return counter;
}

ScheduleMemory DevicePlan::lists(const Counter* counter) const {
  const auto* const begin = static_cast<const char*>(runtime_.address_of(memory_));
  return {.cu_seqlens_q = reinterpret_cast<const int32_t*>(begin),
          .cu_seqlens_k = reinterpret_cast<const int32_t*>(begin + cu_bytes_),
          .records = reinterpret_cast<const TileRecord*>(begin + 2 * cu_bytes_),
          .counter = counter ? counter->data : nullptr};
}

DevicePlan& DevicePlans::on(const Queue* queue, const Plan& plan) {
  const RuntimeTable& table = runtime();
  const Place* place = nullptr;
  check(table, table.place_of(queue, &place));
  const std::scoped_lock lock(mutex_);
  const auto found = std::ranges::find_if(
      devices_, [&](const auto& of_plan) { return of_plan->place() == place; });
  if (found != devices_.end()) return **found;
  return *devices_.emplace_back(std::make_unique<DevicePlan>(plan, queue, place));
}

}  // namespace exactile::sycl
