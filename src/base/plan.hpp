// src/base/plan.hpp - a request and the Plan made from it: which tiles exist, in which order, at
// what cost. Data alone; api/planner.cpp makes plans.
#pragma once

#include <exactile/key_splits.hpp>
#include <exactile/scheduler/tile_list.hpp>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/types.hpp"

namespace exactile {

/// A plan's device memory; backends derive from it.
class PlanMemory {
 public:
  virtual ~PlanMemory() = default;
};

/// Lengths in CUDA memory, which the host never reads. The host's copies of cu_seqlens in
/// PlanRequest and Plan are stand-ins then: as many sequences and tokens, shared out evenly; with
/// pages, as many keys as PlanRequest::max_len_k lets there be.
struct DeviceLengths {
  const int32_t* cu_seqlens_q;  ///< (batch + 1,)
  const int32_t* cu_seqlens_k;  ///< (batch + 1,); null with pages
  const int32_t* seqused_q;     ///< (batch,), or null: all rows count
  const int32_t* seqused_k;     ///< (batch,), or null: all keys count. Not null with pages
  int device;
  uint64_t stream;  ///< where the planner is enqueued
};

/// What is to be computed, and what the caller has decided about how.
struct PlanRequest {
  std::span<const int32_t> cu_seqlens_q;    ///< (batch + 1,)
  std::span<const int32_t> cu_seqlens_k;    ///< (batch + 1,)
  std::span<const int32_t> seqused_q = {};  ///< (batch,): rows that count; empty: all
  std::span<const int32_t> seqused_k = {};  ///< (batch,): keys that count; empty: all
  int64_t page_size = 0;  ///< keys lie in pages of so many, and cu_seqlens_k says how many; 0: no
  std::optional<int32_t> max_len_k = std::nullopt;  ///< of the longest sequence, at most
  int64_t num_heads_q;
  int64_t num_heads_kv;
  int64_t head_dim;
  int64_t head_dim_v;
  Dtype dtype;
  Mask mask;
  std::optional<SchedulerKind> scheduler;  ///< empty: the planner chooses
  std::optional<bool> pack_gqa;            ///< empty: the planner chooses
  std::optional<bool> pack_sequences;      ///< empty: the planner chooses
  std::optional<ListOrder> order;          ///< empty: the planner chooses
  std::optional<int32_t> num_splits = {};  ///< work-groups for the keys of a tile; empty: it does
  Backend backend;
  SyclKernel sycl_kernel = SyclKernel::kPortable;  ///< of the device that is planned for
  std::optional<int> workers;  ///< work-groups that the device runs at a time; empty: the backend's
  std::shared_ptr<const UserScheduler> user_scheduler = nullptr;  ///< in place of `scheduler`
  std::optional<int32_t> work_groups = std::nullopt;  ///< to launch; empty: as `scheduler` says
  std::optional<DeviceLengths> device_lengths = std::nullopt;
};

/// Immutable; can be run from several threads.
struct Plan {
  std::vector<int32_t> cu_seqlens_q, cu_seqlens_k;
  std::vector<int32_t> seqused_q;  ///< (batch,), or empty: all rows count
  std::vector<int32_t> seqused_k;  ///< (batch,), or empty: all keys count. There with pages
  int32_t page_size;               ///< keys in a page; 0: they are packed
  int32_t num_heads_q, num_heads_kv, head_dim, head_dim_v;
  Dtype dtype;
  Mask mask;
  SchedulerKind scheduler;
  ListOrder order;
  bool pack_gqa;
  int32_t packed_len;  ///< TileListSpec::packed_len: sequences up to it share tiles; 0: none
  Backend backend;
  SyclKernel sycl_kernel;  ///< where the backend is sycl
  int workers;

  int32_t block_m, block_n;
  int32_t tile_tokens;  ///< tokens in a full tile
  int32_t tile_heads;   ///< heads that WorkTile::head counts: query heads, or kv heads when packed
  int32_t max_m_blocks = 0;  ///< of the longest sequence
  /// Keys of the longest sequence; with device_lengths at most.
  int32_t max_len_k = 0;
  int64_t num_records = 0;  ///< m_blocks that exist, over all sequences
  int64_t valid = 0;        ///< tiles with work (a row of queries): num_records * tile_heads
  int64_t launched = 0;     ///< work-groups
  int64_t pairs = 0;        ///< visible (query, key) pairs of one head
  int64_t flops = 0;
  int64_t bytes = 0;
  double planning_us = 0;
  std::unique_ptr<TileRecord[]> records =
      nullptr;  ///< (num_records,) in `order`; null for Individual
  std::shared_ptr<const UserScheduler> user_scheduler = nullptr;
  int32_t num_splits = 1;  ///< parts of the tile that is split into most
  /// Where tiles are split, a record is a part: its k_begin is a number of `splits`.
  std::vector<KeySplit> splits = {};        ///< (num_records,), or empty
  std::vector<SplitTile> split_tiles = {};  ///< what is merged
  int64_t partial_rows = 0;                 ///< of all parts
  int32_t merged_rows = 0;                  ///< of all split tiles
  /// With these `num_records` and `launched` are bounds, and `valid` and the work are unknown: 0.
  std::optional<DeviceLengths> device_lengths = std::nullopt;
  std::shared_ptr<PlanMemory> memory = nullptr;  ///< null where the backend needs none

  bool splits_keys() const { return num_splits > 1; }
  bool is_paged() const { return page_size > 0; }
  int32_t batch() const { return static_cast<int32_t>(cu_seqlens_q.size()) - 1; }
  int32_t group() const { return num_heads_q / num_heads_kv; }
  int32_t heads_per_tile() const { return pack_gqa ? group() : 1; }
  int32_t total_q() const { return cu_seqlens_q.back(); }
  int32_t total_k() const { return cu_seqlens_k.back(); }
};

}  // namespace exactile
