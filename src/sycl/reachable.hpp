// src/sycl/reachable.hpp - whether an array lies where a queue's kernels reach it.
#pragma once

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

}  // namespace exactile::sycl
