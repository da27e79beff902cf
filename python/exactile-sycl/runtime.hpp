// python/exactile-sycl/runtime.hpp - all that exactile asks of the SYCL runtime. The only code that
// is compiled against its headers; knows nothing of attention and nothing of Python.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <sycl/sycl.hpp>
#include <utility>
#include <vector>

namespace exactile::sycl {

/// The queue that dpctl keeps at an address.
inline ::sycl::queue& queue_at(uintptr_t address) {
  return *reinterpret_cast<::sycl::queue*>(address);
}

/// One kernel as SPIR-V.
struct Spirv {
  std::string image;
  std::string name;  ///< of the kernel in the image
};

/// Headers (name as in #include <name>, text), then one templated kernel by name.
Spirv compile(const ::sycl::queue& queue, const std::string& source,
              const std::vector<std::pair<std::string, std::string>>& headers,
              const std::string& name_expression, const std::vector<std::string>& flags);

/// `registers` of a hardware thread: 128, or 256, which only Intel GPUs have.
::sycl::kernel load(const ::sycl::queue& queue, const Spirv& spirv, int registers);

/// A queue of our own beside a user's, in its context: nobody else's work is waited for in it.
::sycl::queue side_queue(const ::sycl::queue& queue);

/// Waits for all side queues; for none in a process that was forked after one was made.
void drain();

/// Whether this process was forked from one that had a side queue: the runtime's threads are not in
/// it, and what waits for them waits for ever.
bool was_forked();

/// Once: such processes end without the runtime's own exit handlers, which wait for its threads.
void handle_forks();

/// Constant data of a plan in a device's memory, and one counter for every queue that runs it.
class PlanMemory {
 public:
  /// Returns when the data is there.
  PlanMemory(const ::sycl::queue& queue, const void* data, std::size_t bytes);
  ~PlanMemory();
  PlanMemory(const PlanMemory&) = delete;
  PlanMemory& operator=(const PlanMemory&) = delete;

  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data_); }
  /// Not yet zeroed. Runs on one queue follow one another; those of two queues may overlap.
  int32_t* counter(const ::sycl::queue& queue);

 private:
  ::sycl::context context_;
  ::sycl::device device_;
  void* data_;
  std::mutex mutex_;
  std::vector<std::pair<::sycl::queue, int32_t*>> counters_;  // keeps the queues: no two alike
};

struct Launch {
  const void* params;
  std::size_t params_bytes;
  const void* schedule;
  std::size_t schedule_bytes;
  int32_t* counter;  ///< zeroed first; null: none
  std::size_t work_groups;
  std::size_t threads;  ///< work-items of a work-group
};

/// Enqueued after all that was submitted to the queue before, and before all that comes after,
/// whether the queue is in order or not.
::sycl::event launch(::sycl::queue& queue, const ::sycl::kernel& kernel, const Launch& launch);

}  // namespace exactile::sycl
