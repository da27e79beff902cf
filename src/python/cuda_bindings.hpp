// src/python/cuda_bindings.hpp - what Python asks of the CUDA backend besides plans.
#pragma once

#include <nanobind/nanobind.h>

namespace exactile::cuda {

void bind(nanobind::module_& m);

}  // namespace exactile::cuda
