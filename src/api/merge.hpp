// src/api/merge.hpp - attention over disjoint sets of keys, merged.
#pragma once

#include "base/merge_args.hpp"

namespace exactile {

/// Throws std::invalid_argument for memory in which nothing is merged.
void check_merge_memory(const Device& device);

/// Throws std::invalid_argument for arrays that do not fit one another. Reads no element.
void check_merge(const MergeArgs& args);

/// Computes, or enqueues, what `check_merge` has let pass.
void run_merge(const MergeArgs& args);

/// Whether what run_merge() does with arrays there goes on when it returns: BackendInterface's
/// holds_arrays().
bool merge_holds_arrays(const Device& device);

}  // namespace exactile
