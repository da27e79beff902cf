// src/sycl/launch.hpp - a plan's kernel, enqueued.
#pragma once

#include <string>

#include "base/launch_params.hpp"

namespace exactile::sycl {

/// Why the plan's kernel cannot read or write these arrays; empty if it can.
std::string refusal(const Plan& plan, const PrefillArgs& args);

/// EXACTILE_CHECK=1: waits for the queue; throws std::invalid_argument for a number of no page in
/// the block table.
void check_pages(const Plan& plan, const PrefillArgs& args);

/// Argument 1 of the kernel, the Params of the plan's policy, as bytes.
std::string schedule(const Plan& plan, const ScheduleMemory& lists);

/// Enqueues a checked plan on args.options.stream and returns.
void launch(const Plan& plan, const PrefillArgs& args);

}  // namespace exactile::sycl
