// exactile/sycl/params.hpp - what the SYCL kernels are told. Shared by host (g++) and device (the
// SYCL runtime's compiler); includes nothing of SYCL.
#pragma once

#include <exactile/element.hpp>
#include <exactile/params.hpp>

namespace exactile::sycl {

/// Passed by value as a raw kernel argument.
struct PrefillParams : CommonParams {
  /// Aligned, since where it would lie without, Intel's compiler spills nine registers before the
  /// main loop of one XMX kernel (bfloat16, head_dim 64, Ponte Vecchio).
  alignas(16)
      int32_t* work_groups;  ///< test-only instantiation: [0] counts launched, [1] tiles with work
};

}  // namespace exactile::sycl
