// src/cuda/plan_memory.hpp - what a plan keeps in device memory: its lists and its counters.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/launch_params.hpp"
#include "base/plan.hpp"
#include "cuda/list_upload.hpp"
#include "cuda/stream_memory.hpp"

namespace exactile::cuda {

/// Where the lists lie in a plan's block: offsets in bytes.
struct ListLayout {
  explicit ListLayout(const Plan& plan);

  std::size_t cu_q = 0, cu_k = 0, used_q = 0, used_k = 0, records = 0;
  std::size_t planned = 0;  ///< number of records, where the planner on the device counts them
  std::size_t splits = 0, split_tiles = 0;
  std::size_t counter = 0;
  std::size_t bytes = 0;  ///< of all
};

/// Partial results of a plan, of one launch.
std::size_t partial_bytes(const Plan& plan);
PartialResults partial_results(const Plan& plan, DevicePtr memory);

/// A plan on one device.
class DevicePlan {
 public:
  DevicePlan(Device& device, const Plan& plan);
  ~DevicePlan();
  DevicePlan(const DevicePlan&) = delete;
  DevicePlan& operator=(const DevicePlan&) = delete;

  /// For a launch on a stream: uploads what has to be. The device's context is current.
  LaunchMemory prepare(Stream stream);
  /// Enqueues the planner on the device. Its context is current.
  void enqueue_planner(const Plan& plan);

  Device& device() const { return device_; }
  /// Where the policy and the kernels find them; without a counter.
  ScheduleMemory lists(const Plan& plan) const;
  /// Of plans that split keys.
  const KeySplit* splits() const { return pointer<KeySplit>(layout_.splits); }
  const SplitTile* split_tiles() const { return pointer<SplitTile>(layout_.split_tiles); }

  /// Loaded on first use, by Family, Probe and ScoresKind.
  const LoadedKernel* kernels[kNumFamilies][kNumProbes][kNumScores] = {};

 private:
  template <class T>
  T* pointer(std::size_t offset) const {
    return reinterpret_cast<T*>(lists_.device + offset);
  }
  void fill(const Plan& plan);

  Device& device_;
  const ListLayout layout_;
  const Block lists_;
  const DevicePtr counter_;  // that of the lists; 0 where the policy needs none
  ListUpload upload_;
  StreamMemory of_streams_;
};

/// Belongs to a Plan. Freed with it, without waiting: memory is used again when the last launches
/// are over. Graphs that captured a plan need it alive.
class DevicePlans final : public PlanMemory {
 public:
  /// Held from the choice of a counter to the launch; not while a kernel is compiled or loaded.
  std::mutex& mutex() { return mutex_; }
  DevicePlan& on(Device& device, const Plan& plan);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<DevicePlan>> devices_;
};

}  // namespace exactile::cuda
