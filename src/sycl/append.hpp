// src/sycl/append.hpp - new rows of K and V written into a cache by a kernel on a queue.
#pragma once

#include <string>

#include "base/append_args.hpp"

namespace exactile::sycl {

/// Why the kernel cannot read or write these arrays; empty if it can.
std::string append_refusal(const AppendArgs& args);

/// Enqueues on args.stream and returns.
void append(const AppendArgs& args);

}  // namespace exactile::sycl
