// src/python/cuda_bindings.hpp - bindings of the CUDA backend other than plans.
#pragma once

#include <nanobind/nanobind.h>

namespace exactile::cuda {

void bind(nanobind::module_& m);

}  // namespace exactile::cuda
