// src/cpu/backend.hpp - the CPU's row of the table of backends.
#pragma once

#include "base/backend.hpp"

namespace exactile::cpu {

const BackendInterface& backend();

}  // namespace exactile::cpu
