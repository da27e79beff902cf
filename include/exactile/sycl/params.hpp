// exactile/sycl/params.hpp - parameters of the SYCL kernels. Shared by host (g++) and device (the
// SYCL runtime's compiler); includes nothing of SYCL.
#pragma once

#include <exactile/element.hpp>
#include <exactile/params.hpp>

namespace exactile::sycl {

/// Passed by value as a raw kernel argument.
struct PrefillParams : CommonParams {
  /// Of a test-only instantiation: [0] counts work-groups launched, [1] tiles with work. Where
  /// parameters lie decides whether Intel's compiler spills before the main loop of some XMX
  /// kernels: tests/sycl/test_xmx_isa.py looks.
  int32_t* work_groups;
};

}  // namespace exactile::sycl
