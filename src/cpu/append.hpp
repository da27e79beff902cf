// src/cpu/append.hpp - new rows of K and V written into a cache by threads of this process.
#pragma once

#include "base/append_args.hpp"

namespace exactile::cpu {

/// Returns when the cache is written.
void append(const AppendArgs& args);

}  // namespace exactile::cpu
