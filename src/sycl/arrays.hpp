// src/sycl/arrays.hpp - arrays in USM as the host code sees them.
#pragma once

#include <nanobind/nanobind.h>

#include "../prefill.hpp"

namespace exactile::sycl {

/// An array of dpnp, read through __sycl_usm_array_interface__ (it gives DLPack for its default
/// context only), or of any other library, through DLPack. `writable`: refuse one that is not.
ArrayRef usm_array_ref(nanobind::handle array, Dtype planned, const char* name, bool writable);

}  // namespace exactile::sycl
