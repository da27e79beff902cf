// src/sycl/kernels.hpp - which SYCL kernels there are: support.def's rows, their shapes, their
// sources. Includes nothing of SYCL.
#pragma once

#include <exactile/platform.hpp>
#include <vector>

#include "base/kernel_spec.hpp"
#include "jit/program.hpp"

namespace exactile::sycl {

/// What the host needs to know of a kernel's Traits.
struct Shape {
  int32_t block_m;
  int32_t block_n;
  int32_t row_step;     ///< rows that are computed together: a tile's are rounded up to it
  int32_t threads;      ///< work-items of a work-group
  int32_t local_bytes;  ///< work-group local memory
  int32_t registers;    ///< of a hardware thread: 128, or 256 and half as many threads
};

/// What a plan is made for where no device says how many work-groups it runs at a time: the Xe
/// cores of a Data Center GPU Max 1550 tile, twice.
inline constexpr int kWorkersWithoutDevice = 128;

struct KernelSpec {
  InstanceSpec instance;
  SyclKernel kernel;
  bool count = false;  ///< the test-only instantiation that counts work-groups

  friend auto operator<=>(const KernelSpec&, const KernelSpec&) = default;
};

/// Whether a kernel has Traits for this row of support.def; the portable one has for all.
bool has_row(SyclKernel kernel, Dtype dtype, int64_t head_dim, int64_t head_dim_v);

/// Throws std::invalid_argument where there is no such row.
Shape shape_of(SyclKernel kernel, Dtype dtype, int64_t head_dim, int64_t head_dim_v);

jit::Program make_program(const KernelSpec& spec);

/// What a build on a machine with a SYCL device compiles: the portable kernel's rows under every
/// scheduler. Those for one generation of GPUs can be built where there is one.
std::vector<jit::Program> shipped_programs();

}  // namespace exactile::sycl
