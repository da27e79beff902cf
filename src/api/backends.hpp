// src/api/backends.hpp - the table of backends.
#pragma once

#include "base/backend.hpp"

namespace exactile {

const BackendInterface& backend_of(Backend backend);

}  // namespace exactile
