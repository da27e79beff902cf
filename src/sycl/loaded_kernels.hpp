// src/sycl/loaded_kernels.hpp - kernels that are loaded, by spec, context and device.
#pragma once

#include "sycl/driver.hpp"
#include "sycl/kernels.hpp"

namespace exactile::sycl {

/// Finds or compiles a kernel, and loads it for a queue's context and device. Throws where it
/// cannot be, or where the device lacks what it needs.
using KernelLoader = const Kernel* (*)(const Queue* queue, const Loadable& kernel);

/// Of the module that starts the compiler's processes; once.
void set_kernel_loader(KernelLoader loader);

/// Loaded on first use; threads that ask for one kernel wait for one another, others go on.
const Kernel* loaded_kernel(const Queue* queue, const Place* place, const AnySpec& spec);

}  // namespace exactile::sycl
