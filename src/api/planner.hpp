// src/api/planner.hpp - from lengths to a Plan. Planning needs no device.
#pragma once

#include "base/plan.hpp"

namespace exactile {

/// Throws std::invalid_argument for anything in the request that cannot be planned. Reads the
/// lengths once: what is checked and planned is the plan's own copy.
Plan make_plan(PlanRequest request);

}  // namespace exactile
