// src/api/planner.hpp - from lengths to a Plan. Planning needs no device.
#pragma once

#include <limits>

#include "base/plan.hpp"

namespace exactile {

/// Of a side of a batch. Rows and keys past a tile's end are counted too, in 31 bits.
inline constexpr int32_t kMostTokens = std::numeric_limits<int32_t>::max() - 1023;

/// Throws std::invalid_argument for anything in the request that cannot be planned. Reads the
/// lengths once: what is checked and planned is the plan's own copy.
Plan make_plan(PlanRequest request);

}  // namespace exactile
