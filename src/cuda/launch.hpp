// src/cuda/launch.hpp - a plan's kernel, enqueued.
#pragma once

#include <string>

#include "base/plan.hpp"
#include "base/run_args.hpp"
#include "cuda/kernels.hpp"

namespace exactile::cuda {

/// Enqueues the planner of a plan whose lengths are on the device. Throws std::runtime_error.
void enqueue_planner(const Plan& plan);

/// Size of PrefillParams::timeline. Throws std::invalid_argument for a plan of too many.
int64_t timeline_bytes(const Plan& plan);

/// Why no kernel can take these arrays, or empty.
std::string refusal(const Plan& plan, const PrefillArgs& args);

/// Enqueues a checked plan on args.options.stream and returns.
void launch(const Plan& plan, const PrefillArgs& args);

}  // namespace exactile::cuda
