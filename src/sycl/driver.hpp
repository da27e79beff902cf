// src/sycl/driver.hpp - the SYCL runtime as the host code calls it: exactile-sycl's table, once
// Python has loaded that module. Includes nothing of SYCL.
#pragma once

#include "exactile-sycl/table.hpp"

namespace exactile::sycl {

/// For good. Throws std::runtime_error for null and for the table of another version.
void set_runtime(const RuntimeTable* table);

/// Throws std::runtime_error where there is none, and in a process that was forked from one that
/// had run kernels.
const RuntimeTable& runtime();

/// Throws std::bad_alloc or std::runtime_error for what failed.
void check(const RuntimeTable& runtime, Status status);

}  // namespace exactile::sycl
