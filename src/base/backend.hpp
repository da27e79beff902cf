// src/base/backend.hpp - the interface of a backend. api/backends.cpp lists them.
#pragma once

#include <memory>
#include <string>

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile {

struct AppendArgs;
struct MergeArgs;

struct TileSize {
  int32_t block_m;
  int32_t block_n;
  int32_t row_step;  ///< rows that are computed together: a tile's rows are rounded up to it
};

/// What plans are made for: tiles, and what the planner's cost model needs to know.
struct Target {
  TileSize tile;
  TileSize packed_tile = {};        ///< of kernels whose tiles hold several sequences
  bool packing_pays = false;        ///< those kernels are faster than one tile for each
  int32_t key_step;                 ///< keys that are computed together
  int32_t block_overhead_rows = 0;  ///< cost of visiting a key block at all, in rows
  int32_t tile_overhead_keys = 0;   ///< cost of a tile's begin and end, in keys
  int workers;                      ///< where the caller does not say
  bool splits_keys = false;         ///< work-groups can share the keys of a tile
};

class BackendInterface {
 public:
  virtual Target target(const PlanRequest& request) const = 0;

  /// Of the tile list, where the caller does not say. `mean_m_blocks`: of a sequence, averaged over
  /// the visible pairs.
  virtual ListOrder best_order(const Plan& plan, double mean_m_blocks) const = 0;

  /// Whether there are kernels whose tiles hold several sequences.
  virtual bool packs_sequences() const { return false; }

  /// Whether it can plan from lengths in device memory; then max_records() and plan_on_device() are
  /// called.
  virtual bool takes_device_lengths() const { return false; }
  /// Records of any lengths that the plan's are a stand-in for.
  virtual int64_t max_records(const Plan& /*plan*/) const { return 0; }
  /// Enqueues the planner. Throws std::runtime_error.
  virtual void plan_on_device(const Plan& /*plan*/) const {}

  /// Whether launches return before they are done, and the arrays' libraries do not know of them:
  /// RunExtras::arrays is for it.
  virtual bool holds_arrays() const { return false; }

  /// For a new plan; null where nothing is kept.
  virtual std::shared_ptr<PlanMemory> make_memory() const { return nullptr; }

  /// "arrays in CPU memory for the cpu backend, got them on CUDA 0", or empty.
  virtual std::string refuse_memory(const Device& device) const = 0;
  /// Why no kernel of the plan can take these arrays, which fit it otherwise, or its own policy
  /// (Plan::user_scheduler); or empty.
  virtual std::string refuse(const Plan& /*plan*/, const PrefillArgs& /*args*/) const { return {}; }

  /// Called under EXACTILE_CHECK=1, before launch(): throws std::invalid_argument for a number of
  /// no page in a block table, where launch() does not.
  virtual void check_pages(const Plan& /*plan*/, const PrefillArgs& /*args*/) const {}

  /// Computes, or enqueues on args.options.stream, what has passed check_args().
  virtual void launch(const Plan& plan, const PrefillArgs& args) const = 0;

  /// As refuse() and launch(), for merging results.
  virtual std::string refuse_merge(const MergeArgs& /*args*/) const { return {}; }
  virtual void merge(const MergeArgs& args) const = 0;

  /// As refuse() and launch(), for writing into caches.
  virtual std::string refuse_append(const AppendArgs& /*args*/) const { return {}; }
  virtual void append(const AppendArgs& args) const = 0;

 protected:
  ~BackendInterface() = default;
};

/// "arrays in <expected>, got them on <device>", for refuse_memory().
inline std::string expected_memory(const std::string& expected, const Device& device) {
  return "arrays in " + expected + ", got them on " + to_string(device);
}

/// The order for devices whose work-groups share a cache. Head-major keeps a head's K and V there,
/// worth it where those of all heads of a sequence outgrow it (more than `large_bytes`) and lengths
/// are alike: where they differ, the longest tiles would no longer all come first. Elsewhere
/// sequence-major: longest first would, under a causal mask, take tiles of more sequences in turn
/// than the cache holds. A planner on the device sorts tile by tile.
inline ListOrder order_for_shared_cache(const Plan& plan, double mean_m_blocks,
                                        double large_bytes) {
  const double kv_bytes = mean_m_blocks * plan.tile_tokens * plan.num_heads_kv *
                          (plan.head_dim + plan.head_dim_v) * dtype_bytes(plan.dtype);
  const bool alike = mean_m_blocks * plan.batch() < 1.5 * plan.num_records;
  if (alike && kv_bytes >= large_bytes) return ListOrder::kHeadMajor;
  return plan.device_lengths ? ListOrder::kLongestFirst : ListOrder::kSequenceMajor;
}

}  // namespace exactile
