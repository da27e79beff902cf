// src/api/append.hpp - run_append(): new rows of K and V, written into the pages of a cache.
#pragma once

#include "base/append_args.hpp"

namespace exactile {

/// Throws std::invalid_argument for memory in which nothing is appended.
void check_append_memory(const Device& device);

/// Throws std::invalid_argument for arrays that do not fit one another, and for slots in CPU memory
/// that the cache does not have; these are in args.host_slots then.
void check_append(AppendArgs& args);

/// Computes, or enqueues, what `check_append` has let pass.
void run_append(const AppendArgs& args);

/// As merge_holds_arrays().
bool append_holds_arrays(const Device& device);

}  // namespace exactile
