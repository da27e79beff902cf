// src/sycl/merge.hpp - results merged by a kernel on a queue.
#pragma once

#include <string>

#include "base/merge_args.hpp"

namespace exactile::sycl {

/// Why the kernel cannot read or write these arrays; empty if it can.
std::string merge_refusal(const MergeArgs& args);

/// Enqueues on args.stream and returns.
void merge(const MergeArgs& args);

}  // namespace exactile::sycl
