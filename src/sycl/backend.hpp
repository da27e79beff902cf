// src/sycl/backend.hpp - SYCL's row of the table of backends.
#pragma once

#include "base/backend.hpp"

namespace exactile::sycl {

const BackendInterface& backend();

}  // namespace exactile::sycl
