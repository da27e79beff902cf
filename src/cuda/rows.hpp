// src/cuda/rows.hpp - merging results and appending to caches, enqueued.
#pragma once

#include <string>

#include "base/append_args.hpp"
#include "base/merge_args.hpp"

namespace exactile::cuda {

/// Why these cannot be merged, or empty.
std::string merge_refusal(const MergeArgs& args);
/// Enqueues a checked merge on args.stream and returns.
void merge(const MergeArgs& args);

/// Why these cannot be appended, or empty.
std::string append_refusal(const AppendArgs& args);
/// Enqueues a checked append on args.stream and returns.
void append(const AppendArgs& args);

}  // namespace exactile::cuda
