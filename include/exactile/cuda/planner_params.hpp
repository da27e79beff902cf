// exactile/cuda/planner_params.hpp - parameters of the device planner. Shared by host (g++) and
// device (NVRTC, nvcc).
#pragma once

#include <exactile/scheduler/tile_list.hpp>

namespace exactile::cuda {

/// What was tried: benchmarks/hopper.md.
inline constexpr int32_t kPlannerThreads = 640;
/// Sequences, and records, that a thread works on at a time: one alone would mostly wait.
inline constexpr int32_t kPlannerPerThread = 2;
inline constexpr int32_t kPlannerRound = kPlannerThreads * kPlannerPerThread;
/// A portable cluster.
inline constexpr int32_t kPlannerMaxBlocks = 8;

struct PlannerParams {
  TileListSpec spec;     ///< cu_seqlens and seqused in device memory
  int32_t max_len_k;     ///< keys of a sequence that count, at most: tables have pages for so many
  ListOrder order;       ///< not kSequenceMajor; kLongestFirst and kHeadMajor are the same list
  TileRecord* records;   ///< (max_records,)
  int32_t max_records;   ///< max_num_records(); what does not fit is dropped, never written past
  int32_t* num_records;  ///< for CompactList::planned
  int32_t* counter;      ///< ValidOnlyPersistent's, is set to 0; or null
};

/// sequence_record(), whatever the lengths say with no more than max_len_k keys.
EXACTILE_HOST_DEVICE constexpr TileRecord planned_sequence(const PlannerParams& params, int32_t b) {
  TileRecord record = sequence_record(params.spec, b);
  record.k_len = min(record.k_len, params.max_len_k);
  return record;
}

/// Records of any batch of so many query tokens and sequences.
EXACTILE_HOST_DEVICE constexpr int64_t max_num_records(int64_t total_q, int32_t batch,
                                                       int32_t tile_tokens) {
  return total_q / tile_tokens + batch;
}

/// Blocks to launch, as one cluster, which costs 2 us. GPUs without clusters take one block.
EXACTILE_HOST_DEVICE constexpr int32_t planner_blocks(int32_t max_records, bool has_clusters) {
  return has_clusters && max_records > kPlannerRound ? kPlannerMaxBlocks : 1;
}

/// What tiles are sorted by: 0 for those that visit most keys. Told apart by 128 keys, beyond
/// 32,768 keys by one part in 32.
inline constexpr int32_t kPlannerBins = 512;
EXACTILE_HOST_DEVICE constexpr int32_t planner_bin(const TileListSpec& spec,
                                                   const TileRecord& tile) {
  const KeyRange keys = visited_keys(spec, tile);
  const int32_t cost = keys.empty() ? 0 : (keys.end - keys.begin) / 128 + 1;
  int32_t octaves = 0;
  while (cost >> octaves >= 256) ++octaves;
  const int32_t rank = octaves == 0 ? cost : 192 + 32 * octaves + (cost >> (octaves + 2));
  return kPlannerBins - 1 - min(rank, kPlannerBins - 1);
}

namespace planner {

struct SharedStorage {
  int32_t before[kPlannerRound];  // tiles before each sequence of a chunk
  int32_t count[kPlannerBins];    // of this block
  int32_t next[kPlannerBins];     // position of the next tile of a bin
  int32_t partial[32];
  int32_t total;  // of this block
};

}  // namespace planner

}  // namespace exactile::cuda
