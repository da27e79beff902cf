// src/cuda/page_check.hpp - EXACTILE_CHECK=1: the host checks the page numbers of a table on a GPU.
#pragma once

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile::cuda {

/// Waits for the run's stream and, with lengths on the GPU, for the planner's. Throws
/// std::invalid_argument for a number of no page, and while one of these is captured.
void check_pages(const Plan& plan, const PrefillArgs& args);

}  // namespace exactile::cuda
