// exactile/cuda/planner_params.hpp - what the device planner is told. Shared by host (g++) and
// device (NVRTC, nvcc).
#pragma once

#include <exactile/scheduler/tile_list.hpp>

namespace exactile::cuda {

inline constexpr int32_t kPlannerThreads = 1024;
inline constexpr int32_t kPlannerMaxBlocks = 64;
/// Costs that are told apart at a time; more take several passes.
inline constexpr int32_t kPlannerCosts = 512;
/// Entries of the table of tiles before each sequence; more sequences share entries.
inline constexpr int32_t kPlannerEntries = 8 * kPlannerThreads;

struct PlannerParams {
  TileListSpec spec;     ///< cu_seqlens in device memory
  ListOrder order;       ///< kLongestFirst and kHeadMajor are the same list
  TileRecord* records;   ///< (max_records,)
  int32_t max_records;   ///< max_num_records(); what does not fit is dropped, never written past
  int32_t* num_records;  ///< for CompactList::planned
  int32_t* counter;      ///< ValidOnlyPersistent's, is set to 0; or null
  int32_t* scratch;      ///< planner_scratch_size(); 0 before its first use, then reused as it is
};

/// Records of any batch of so many query tokens and sequences.
EXACTILE_HOST_DEVICE constexpr int64_t max_num_records(int64_t total_q, int32_t batch,
                                                       int32_t tile_tokens) {
  return total_q / tile_tokens + batch;
}

/// Blocks to launch. They wait for one another: more than one need a cooperative launch.
EXACTILE_HOST_DEVICE constexpr int32_t planner_blocks(int32_t max_records, int32_t num_sms) {
  const int32_t wanted = ceil_div(max_records, kPlannerThreads);
  return max(1, min(wanted, min(kPlannerMaxBlocks, num_sms)));
}

/// In int32 elements: two words of the barrier, and counts by cost of every block, twice.
EXACTILE_HOST_DEVICE constexpr int64_t planner_scratch_size(int32_t blocks) {
  return 2 + int64_t{2} * blocks * kPlannerCosts;
}

namespace planner {

inline constexpr int32_t kWarps = kPlannerThreads / 32;
static_assert(kWarps == 32);

struct SharedStorage {
  int32_t before[kPlannerEntries];                      // tiles before an entry's sequences
  unsigned short tiles_of_warp[kWarps][kPlannerCosts];  // of a round; then those before the warp
  int32_t start[kPlannerCosts];                         // by cost: number, then next position
  int32_t partial[kWarps];
};

}  // namespace planner

/// Dynamic shared memory of plan_tiles().
inline constexpr int32_t kPlannerSharedBytes = sizeof(planner::SharedStorage);

}  // namespace exactile::cuda
