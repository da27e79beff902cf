// src/sycl/plan_memory.cpp - a plan's lists: packed, uploaded, found again.
#include "sycl/plan_memory.hpp"

#include <algorithm>
#include <string>

namespace exactile::sycl {
namespace {

/// f(list, values in it) for those that there are.
template <class Function>
void for_each_list(const Plan& plan, ScheduleMemory& lists, Function f) {
  const auto visit = [&](auto*& list, std::size_t size) {
    if (list) f(list, size);
  };
  visit(lists.cu_seqlens_q, plan.cu_seqlens_q.size());
  visit(lists.cu_seqlens_k, plan.cu_seqlens_k.size());
  visit(lists.seqused_q, plan.seqused_q.size());
  visit(lists.seqused_k, plan.seqused_k.size());
  visit(lists.records, plan.num_records);
}

/// Up to where the next list begins: a record is aligned to its size.
std::size_t padded(std::size_t bytes) {
  return ceil_div(bytes, sizeof(TileRecord)) * sizeof(TileRecord);
}

}  // namespace

DevicePlan::DevicePlan(const Plan& plan, const Queue* queue, const Place* place)
    : runtime_(runtime()), place_(place), lists_(host_lists(plan)) {
  std::string bytes;
  for_each_list(plan, lists_, [&]<class T>(const T* list, std::size_t size) {
    bytes.append(reinterpret_cast<const char*>(list), size * sizeof(T));
    bytes.resize(padded(bytes.size()));
  });
  check(runtime_, runtime_.make_memory(queue, bytes.data(), bytes.size(), &memory_));
  const auto* next = static_cast<const char*>(runtime_.address_of(memory_));
  for_each_list(plan, lists_, [&]<class T>(const T*& list, std::size_t size) {
    list = reinterpret_cast<const T*>(next);
    next += padded(size * sizeof(T));
  });
}

Counter* DevicePlan::counter(const Queue* queue) const {
  Counter* counter = nullptr;
  check(runtime_, runtime_.counter_of(memory_, queue, &counter));
  return counter;
}

ScheduleMemory DevicePlan::lists(const Counter* counter) const {
  ScheduleMemory lists = lists_;
  if (counter) lists.counter = counter->data;
  return lists;
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
