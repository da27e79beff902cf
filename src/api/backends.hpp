// src/api/backends.hpp - the table of backends.
#pragma once

#include "base/backend.hpp"

namespace exactile {

const BackendInterface& backend_of(Backend backend);

/// The backend that reaches the memory of a device; null: none.
const BackendInterface* find_backend(const Device& device);

/// "arrays in CPU, CUDA or SYCL memory, got them on Metal 0" where there is none, or empty.
std::string refuse_memory(const Device& device);

}  // namespace exactile
