// python/exactile-sycl/table.hpp - what exactile's own module calls of exactile-sycl, as a table of
// C functions: that module is not linked to the SYCL runtime, and may come from another compiler.
// Includes nothing of SYCL and nothing of Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace exactile::sycl {

/// To be raised by every change of what follows.
inline constexpr uint32_t kTableVersion = 3;
/// Name of the capsule that holds a RuntimeTable's address.
inline constexpr const char* kTableCapsule = "exactile_sycl.table";

extern "C" {

/// A ::sycl::queue, at the address that dpctl keeps it.
struct Queue;
/// A ::sycl::kernel; loaded for one context and device, and never freed.
struct Kernel;
/// A context and a device in it. Queues of the same two have the same address.
struct Place;
/// Constant data of a plan in a device's memory, and one counter for every queue that runs it.
struct DeviceMemory;

/// Of one queue.
struct Counter {
  int32_t* data;  ///< in the device's memory
};

struct Launch {
  const Kernel* kernel;
  const void* params;  ///< argument 0
  std::size_t params_bytes;
  const void* schedule;  ///< argument 1
  std::size_t schedule_bytes;
  Counter* counter;  ///< zeroed first; null: none
  std::size_t work_groups;
  std::size_t threads;  ///< work-items of a work-group
  void* held;           ///< what the kernel uses
  /// Called with `held` when the kernel is done, on any thread; also where the launch fails.
  void (*release)(void* held);
};

/// How a function ended; RuntimeTable::last_error() says what failed.
enum class Status : int32_t { kDone, kNoMemory, kFailed };

struct RuntimeTable {
  uint32_t version;  ///< kTableVersion; at this place in every version
  /// Of the calling thread's last function that failed.
  const char* (*last_error)();
  /// Whether this process was forked from one that had asked for a place: the runtime's threads are
  /// not in it, and what waits for them waits for ever.
  bool (*was_forked)();
  Status (*place_of)(const Queue* queue, const Place** place);
  /// Whether a pointer can be used in a queue's context.
  Status (*is_reachable)(const Queue* queue, const void* pointer, bool* reachable);
  /// Returns when all that was submitted to the queue is done, and the data is there.
  Status (*read_memory)(const Queue* queue, const void* from, std::size_t bytes, void* to);
  /// Returns when the data is there.
  Status (*make_memory)(const Queue* queue, const void* data, std::size_t bytes,
                        DeviceMemory** memory);
  void (*free_memory)(DeviceMemory* memory);
  void* (*address_of)(const DeviceMemory* memory);
  /// Not yet zeroed. Runs on one queue follow one another; those of two queues may overlap.
  Status (*counter_of)(DeviceMemory* memory, const Queue* queue, Counter** counter);
  /// Enqueued after all that was submitted to the queue before, and before all that comes after,
  /// whether the queue is in order or not.
  Status (*launch)(Queue* queue, const Launch* launch);
};

}  // extern "C"

}  // namespace exactile::sycl
