// src/sycl/launch.hpp - a plan and its arrays as the bytes that a SYCL kernel is launched with.
#pragma once

#include <string>

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile::sycl {

/// Why the plan's kernel cannot read or write these arrays; empty if it can.
std::string refusal(const Plan& plan, const PrefillArgs& args);

/// What a plan keeps in a device's memory: cu_seqlens_q, cu_seqlens_k, records.
std::string lists(const Plan& plan);

/// Argument 0 of the kernel. The arrays are those that check_args() has passed.
std::string params(const Plan& plan, const PrefillArgs& args);

/// Argument 1: the policy's Params, for lists() at an address, and a counter or null.
std::string schedule(const Plan& plan, uint64_t lists, uint64_t counter);

}  // namespace exactile::sycl
