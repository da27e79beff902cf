// src/cpu/launch.hpp - a plan's tiles, computed by threads of this process.
#pragma once

#include <string>
#include <vector>

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile::cpu {

/// Runs a checked plan on plan.workers threads; returns when the output is written.
void launch(const Plan& plan, const PrefillArgs& args);

/// Instruction set in use, and all that are built in and run on this processor, best first.
std::string isa();
std::vector<std::string> available_isas();

/// Threads that the process may run on.
int hardware_threads();

}  // namespace exactile::cpu
