// src/sycl/reachable.hpp - a call's queue, and whether arrays lie where its kernels reach them.
#pragma once

#include <memory>
#include <string>

#include "base/run_args.hpp"
#include "sycl/driver.hpp"

namespace exactile::sycl {

/// "expected q in memory of the queue's context ...", or empty.
inline std::string refuse_context(const Queue* queue, const std::string& name,
                                  const ArrayRef& array) {
  bool reachable = !array.has_elements();
  if (!reachable) check(runtime(), runtime().is_reachable(queue, array.data, &reachable));
  if (reachable) return "";
  return "expected " + name +
         " in memory of the queue's context, got an array of another context; make both from one "
         "queue, or copy the array";
}

/// The queue whose address dpctl gave; null: none.
inline Queue* queue_at(uint64_t stream) { return reinterpret_cast<Queue*>(stream); }

inline std::string refuse_no_queue(const Queue* queue) {
  return queue ? "" : "expected a SYCL queue to run on, got none";
}

/// What a launch uses until it is done.
struct Held {
  std::shared_ptr<void> arrays, memory;

  /// Launch::release.
  static void release(void* held) { delete static_cast<Held*>(held); }
};

}  // namespace exactile::sycl
