// src/cpu/merge.hpp - results merged by threads of this process.
#pragma once

#include "base/merge_args.hpp"

namespace exactile::cpu {

/// Returns when the output is written.
void merge(const MergeArgs& args);

}  // namespace exactile::cpu
