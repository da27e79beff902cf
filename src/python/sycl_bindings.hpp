// src/python/sycl_bindings.hpp - the sycl backend for Python: the runtime's functions, kernels to
// and from the cache. The runtime itself is in a module of its own, loaded when it is needed.
#pragma once

#include <nanobind/nanobind.h>

namespace exactile::sycl {

void bind(nanobind::module_& m);

}  // namespace exactile::sycl
