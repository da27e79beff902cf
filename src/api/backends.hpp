// src/api/backends.hpp - the table of backends.
#pragma once

#include "base/backend.hpp"

namespace exactile {

const BackendInterface& backend_of(Backend backend);

/// The backend that reaches the memory of a device and says yes to `does`; null: none.
const BackendInterface* find_backend(const Device& device, bool (BackendInterface::*does)() const);

}  // namespace exactile
