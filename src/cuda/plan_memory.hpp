// src/cuda/plan_memory.hpp - what a plan keeps in device memory: its lists and its counters.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/plan.hpp"
#include "cuda/device.hpp"

namespace exactile::cuda {

/// A plan on one device. Lists are uploaded once, on the stream of the first launch; streams that
/// come later wait for that. A stream has a counter of its own, and so has every launch that is
/// captured into a graph: a graph may be replayed beside anything else. Launches leave a counter at
/// 0, where they found it.
class DevicePlan {
 public:
  DevicePlan(Device& device, const Plan& plan);
  ~DevicePlan();
  DevicePlan(const DevicePlan&) = delete;
  DevicePlan& operator=(const DevicePlan&) = delete;

  /// A launch on a stream; `counter` is free for it, if the policy needs one.
  struct Launch {
    DevicePtr counter;
    bool is_zero;    ///< the counter; else it has to be set to 0
    Event last_use;  ///< to be recorded after the launch; null while capturing
  };
  /// Uploads what has to be. The device's context is current.
  Launch prepare(Stream stream);
  /// Enqueues the planner on the device. Its context is current.
  void enqueue_planner(const Plan& plan);

  Device& device() const { return device_; }
  const int32_t* cu_seqlens_q() const { return pointer<int32_t>(cu_q_); }
  const int32_t* cu_seqlens_k() const { return pointer<int32_t>(cu_k_); }
  const TileRecord* records() const { return pointer<TileRecord>(records_); }
  /// Number of records, where the planner on the device counts them; else null.
  const int32_t* planned() const { return planned_ ? pointer<int32_t>(planned_) : nullptr; }

  /// Loaded on first use, by Family and Probe.
  const LoadedKernel* kernels[kNumFamilies][kNumProbes] = {};

 private:
  struct StreamState {
    unsigned long long id;
    DevicePtr counter;
    Event last_use;
  };
  template <class T>
  const T* pointer(std::size_t offset) const {
    return reinterpret_cast<const T*>(lists_.device + offset);
  }
  std::size_t place(std::size_t bytes);
  void record_planner();
  void upload(Stream stream, bool capturing);
  DevicePtr new_counter();
  DevicePtr list_counter() const { return needs_counter_ ? lists_.device + counter_ : 0; }

  Device& device_;
  const bool needs_counter_;
  const bool leaves_zero_;  // a user's own policy need not
  Block lists_;
  // Offsets in lists_, and its size.
  std::size_t cu_q_ = 0, cu_k_ = 0, records_ = 0, planned_ = 0, counter_ = 0, bytes_ = 0;
  enum class Upload : unsigned char { kNotStarted, kStarted, kDone } upload_ = Upload::kNotStarted;
  Event uploaded_ = nullptr;
  // Of the planner on the device: where it ran.
  unsigned long long planning_stream_ = 0;
  Stream planning_stream_handle_ = nullptr;
  bool planner_captured_ = false;
  std::vector<StreamState> streams_;
  bool list_counter_taken_ = false;  // by a stream or a captured launch
  std::vector<Block> counters_;      // for any further one
  std::size_t used_counters_ = 0;
};

/// Belongs to a Plan. Freed with it, without waiting: memory is used again when the last launches
/// are over. Graphs that captured a plan need it alive.
class DevicePlans final : public PlanMemory {
 public:
  /// Held from the choice of a counter to the launch.
  std::mutex& mutex() { return mutex_; }
  DevicePlan& on(Device& device, const Plan& plan);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<DevicePlan>> devices_;
};

}  // namespace exactile::cuda
