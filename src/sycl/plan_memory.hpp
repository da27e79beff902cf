// src/sycl/plan_memory.hpp - what a plan keeps in the memory of SYCL devices: its lists and its
// counters.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "base/kernel_spec.hpp"
#include "base/launch_params.hpp"
#include "base/plan.hpp"
#include "sycl/driver.hpp"

namespace exactile::sycl {

/// A plan on one device, in one context. Uploaded when it is made.
class DevicePlan {
 public:
  DevicePlan(const Plan& plan, const Queue* queue, const Place* place);
  ~DevicePlan() { runtime_.free_memory(memory_); }
  DevicePlan(const DevicePlan&) = delete;
  DevicePlan& operator=(const DevicePlan&) = delete;

  const Place* place() const { return place_; }
  /// Not yet zeroed; that of the queue.
  Counter* counter(const Queue* queue) const;
  /// Where the policy finds its lists, and a counter or null.
  ScheduleMemory lists(const Counter* counter) const;

  /// Loaded on first use, by the variant of the scores; [1] counts work-groups, for tests.
  std::atomic<const Kernel*> kernels[kNumScores][2] = {};

 private:
  const RuntimeTable& runtime_;
  const Place* const place_;
  DeviceMemory* memory_ = nullptr;
  ScheduleMemory lists_;  // in it, but for the counter
};

/// Belongs to a Plan; launches hold it until their kernels are done.
class DevicePlans final : public PlanMemory {
 public:
  DevicePlan& on(const Queue* queue, const Plan& plan);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<DevicePlan>> devices_;
};

}  // namespace exactile::sycl
