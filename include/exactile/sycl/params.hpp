// exactile/sycl/params.hpp - what the SYCL kernels are told. Shared by host (g++) and device (the
// SYCL runtime's compiler); includes nothing of SYCL.
#pragma once

#include <exactile/element.hpp>
#include <exactile/params.hpp>

namespace exactile::sycl {

/// Passed by value as a raw kernel argument.
struct PrefillParams : CommonParams {
  int32_t* work_groups;  ///< test-only instantiation: [0] counts launched, [1] tiles with work
};

}  // namespace exactile::sycl
