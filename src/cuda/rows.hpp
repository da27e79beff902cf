// src/cuda/rows.hpp - kernels that go through rows, enqueued: merges, and appends to caches.
#pragma once

#include <string>

#include "base/append_args.hpp"
#include "base/merge_args.hpp"
#include "cuda/device.hpp"

namespace exactile::cuda {

/// Enqueues a kernel that has a warp for each of so many rows.
void launch_rows(Device& device, const AnySpec& spec, int64_t rows, Stream stream,
                 void** arguments);

/// Why these cannot be merged, or empty.
std::string merge_refusal(const MergeArgs& args);
/// Enqueues a checked merge on args.stream and returns.
void merge(const MergeArgs& args);

/// Why these cannot be appended, or empty.
std::string append_refusal(const AppendArgs& args);
/// Enqueues a checked append on args.stream and returns.
void append(const AppendArgs& args);

}  // namespace exactile::cuda
