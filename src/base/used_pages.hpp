// src/base/used_pages.hpp - whether the pages are there that a block table gives to the sequences
// of a plan.
#pragma once

#include <functional>
#include <span>

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile {

/// Throws std::invalid_argument for a number of no page among those that a sequence uses.
void check_page_numbers(std::span<const int32_t> used, int32_t sequence, int64_t num_pages);

/// Copies bytes from a device's memory, and returns when they are there.
using ReadMemory = std::function<void(void* to, const void* from, std::size_t bytes)>;

/// The same for all sequences, with a table in a device's memory. `seqused_k`: (batch,).
void check_used_pages(const Plan& plan, const PrefillArgs& args, std::span<const int32_t> seqused_k,
                      const ReadMemory& read);

}  // namespace exactile
