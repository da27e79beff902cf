// src/python/usm_arrays.hpp - reads arrays in USM (dpnp's).
#pragma once

#include "python/arrays.hpp"

namespace exactile::sycl {

/// Whether x has __sycl_usm_array_interface__: dpnp's arrays do, and give DLPack for their default
/// context only.
bool has_interface(nanobind::handle x);

/// As read_array, through that interface.
ArrayRef read_interface(nanobind::handle x, const ArrayRequest& request);

}  // namespace exactile::sycl
