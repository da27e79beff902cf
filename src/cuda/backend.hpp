// src/cuda/backend.hpp - CUDA's row of the table of backends.
#pragma once

#include "base/backend.hpp"

namespace exactile::cuda {

const BackendInterface& backend();

}  // namespace exactile::cuda
