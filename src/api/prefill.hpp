// src/api/prefill.hpp - running a plan on arrays.
#pragma once

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile {

/// Throws std::invalid_argument for a device whose memory the plan's backend does not reach.
void check_memory(const Plan& plan, const Device& device);

/// Throws std::invalid_argument for arrays that do not fit the plan or one another. Reads no
/// element.
void check_args(const Plan& plan, const PrefillArgs& args);

/// Computes, on the CPU or enqueued on a GPU, what `check_args` has let pass.
void run_plan(const Plan& plan, const PrefillArgs& args);

}  // namespace exactile
