// src/cuda/launch.hpp - the CUDA rooms' door for the host code.
#pragma once

#include <string>

#include "../prefill.hpp"
#include "kernels.hpp"

namespace exactile::cuda {

/// What plans are made for.
struct Target {
  Shape shape;         ///< of the tiles
  Shape packed_shape;  ///< of the kernels whose tiles hold several sequences
  bool packing_pays;   ///< they compute these at once
  int workers;         ///< work-groups at a time
};

/// The current device, else an H100: planning needs no device.
Target planning_target(const PlanRequest& request);

/// Enqueues the planner of a plan whose lengths are on the device. Throws std::runtime_error.
void enqueue_planner(const Plan& plan);

/// Size of PrefillParams::timeline. Throws std::invalid_argument for a plan of too many.
int64_t timeline_bytes(const Plan& plan);

/// Why no kernel can take these arrays, or empty.
std::string refusal(const PrefillArgs& args);

/// Enqueues a checked plan on args.stream and returns.
void launch(const Plan& plan, const PrefillArgs& args);

}  // namespace exactile::cuda
