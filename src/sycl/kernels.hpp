// src/sycl/kernels.hpp - which SYCL kernels there are: support.def's rows, their shapes, their
// sources. Includes nothing of SYCL.
#pragma once

#include <exactile/platform.hpp>
#include <optional>
#include <variant>
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
  int32_t page_step;    ///< the keys of a page are a multiple of it
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

using AnySpec = std::variant<KernelSpec, MergeSpec, AppendSpec>;

/// What a kernel is asked for; `page_size` 0: no pages.
struct Wanted {
  Dtype dtype;
  int64_t head_dim, head_dim_v;
  int64_t page_size = 0;
};

/// Null where a kernel has no Traits for this row of support.def, or does not take the pages; the
/// portable one takes all.
std::optional<Shape> find_shape(SyclKernel kernel, const Wanted& wanted);

/// Throws std::invalid_argument where there is none.
Shape shape_of(SyclKernel kernel, const Wanted& wanted);

jit::Program make_program(const KernelSpec& spec);

/// A kernel's source, and what it needs of a device.
struct Loadable {
  jit::Program program;
  SyclKernel kernel;
  Dtype dtype;
  int32_t threads, local_bytes, registers;  ///< as in Shape
};

/// Throws as shape_of().
Loadable loadable(const AnySpec& spec);

/// What a build on a machine with a SYCL device compiles: the portable kernel's rows under every
/// scheduler, merges, and appends of a dtype to its own. Those for one generation of GPUs can be
/// built where there is one.
std::vector<jit::Program> shipped_programs();

}  // namespace exactile::sycl
