// src/api/splitting.cpp - see splitting.hpp.
#include "api/splitting.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace exactile {
namespace {

/// What a tile costs, in key blocks.
struct TileCost {
  int32_t blocks;
  double overhead;  ///< of its begin and end
  double partial;   ///< of a partial result, written and read
};

/// The time of all tiles, in key blocks: that of the longest part where every part has a worker of
/// its own; else all work, shared out, and half a part at the end, when workers become idle.
double modelled_time(const std::vector<TileCost>& tiles, int64_t tile_heads,
                     const Splitting& splitting, int workers) {
  double work = 0, longest = 0;
  int64_t parts = 0;
  for (const TileCost& tile : tiles) {
    const int32_t of_tile = splitting.parts(tile.blocks);
    const double per_part = tile.overhead + (of_tile > 1 ? tile.partial : 0);
    const double part = static_cast<double>(ceil_div(tile.blocks, of_tile)) + per_part;
    longest = std::max(longest, part);
    work += tile.blocks + of_tile * per_part;
    parts += of_tile;
  }
  if (parts * tile_heads <= workers) return longest;
  return work * static_cast<double>(tile_heads) / workers + longest / 2;
}

/// By the planner's model.
Splitting best_splitting(const PlanRequest& r, const TileListSpec& spec, const Target& target,
                         const Plan& plan) {
  constexpr int64_t kManyTiles = 8;  // for each worker: nothing to gain
  if (plan.num_records * plan.tile_heads >= kManyTiles * target.workers) return {};
  const double block_bytes = 2.0 * spec.block_n * static_cast<double>(r.head_dim + r.head_dim_v);
  std::vector<TileCost> tiles;
  int32_t longest = 0;
  for_each_tile(spec, [&](const TileRecord& tile) {
    const int32_t tokens = WorkTile{tile, 0}.num_tokens(spec.tile_tokens);
    const double partial = 2 * sizeof(float) * r.head_dim_v * tokens * plan.heads_per_tile();
    tiles.push_back({.blocks = num_n_blocks(spec, tile),
                     .overhead = 1.0 * target.tile_overhead_keys / spec.block_n,
                     .partial = partial / block_bytes});
    longest = std::max(longest, tiles.back().blocks);
  });
  constexpr double kMergeBlocks = 6;  // the launch that merges
  constexpr double kWorthIt = 0.9;
  constexpr int32_t kFewestBlocks = 4;  // in a part
  double least = kWorthIt * modelled_time(tiles, plan.tile_heads, {}, target.workers);
  Splitting best;
  for (int32_t parts = 2; parts <= 128 && longest / parts >= kFewestBlocks;
       parts += 1 + parts / 16) {
    const Splitting splitting{.max_blocks = ceil_div(longest, parts), .max_parts = parts};
    const double time =
        kMergeBlocks + modelled_time(tiles, plan.tile_heads, splitting, target.workers);
    if (time < least) {
      least = time;
      best = splitting;
    }
  }
  return best;
}

}  // namespace

int32_t Splitting::parts(int32_t blocks) const {
  return std::clamp(ceil_div(blocks, max_blocks), 1, std::max(1, std::min(blocks, max_parts)));
}

Splitting choose_splitting(const PlanRequest& r, const TileListSpec& spec, const Target& target,
                           const Plan& plan) {
  if (r.num_splits) return {.max_blocks = 1, .max_parts = *r.num_splits};
  const bool may_split = target.splits_keys && !r.scheduler && !r.user_scheduler &&
                         !r.device_lengths && spec.packed_len == 0;
  return may_split ? best_splitting(r, spec, target, plan) : Splitting{};
}

int64_t count_parts(const TileListSpec& spec, const Splitting& splitting) {
  int64_t parts = 0;
  for_each_tile(
      spec, [&](const TileRecord& tile) { parts += splitting.parts(num_n_blocks(spec, tile)); });
  return parts;
}

void split_list(const TileListSpec& spec, const Splitting& splitting, int64_t num_tiles,
                Plan& plan) {
  const std::unique_ptr<TileRecord[]> tiles = std::move(plan.records);
  plan.records = std::make_unique_for_overwrite<TileRecord[]>(plan.num_records);
  plan.splits.reserve(plan.num_records);
  int64_t merged_rows = 0;
  for (int64_t t = 0; t < num_tiles; ++t) {
    const TileRecord& tile = tiles[t];
    const BlockRange blocks = blocks_with(visited_keys(spec, tile), spec.block_n);
    const int32_t parts = splitting.parts(blocks.end - blocks.begin);
    const int64_t rows = int64_t{WorkTile{tile, 0}.num_tokens(spec.tile_tokens)} * plan.num_heads_q;
    if (parts > 1) {
      plan.split_tiles.push_back({.q_begin = tile.q_begin,
                                  .rows_before = static_cast<int32_t>(merged_rows),
                                  .first_row = static_cast<int32_t>(plan.partial_rows),
                                  .num_parts = parts});
    }
    for (int32_t part = 0; part < parts; ++part) {
      // Whole blocks, shared out evenly; first and last part reach to where there is no key.
      const auto key_of = [&](int32_t of) {
        const int64_t block = blocks.begin + int64_t{blocks.end - blocks.begin} * of / parts;
        return of == 0       ? 0
               : of == parts ? std::max(1, tile.k_len)
                             : static_cast<int32_t>(block * spec.block_n);
      };
      TileRecord& record = plan.records[plan.splits.size()] = tile;
      record.k_begin = static_cast<int32_t>(plan.splits.size());
      plan.splits.push_back(
          {.k_begin = tile.k_begin,
           .first_key = key_of(part),
           .end_key = key_of(part + 1),
           .first_row = parts > 1 ? static_cast<int32_t>(plan.partial_rows) : -1});
      if (parts > 1) plan.partial_rows += rows;
    }
    if (parts > 1) merged_rows += rows;
    plan.num_splits = std::max(plan.num_splits, parts);
    if (plan.partial_rows > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument(
          "plan: expected less than 2^31 rows of partial results (rows of split tiles, times query "
          "heads, times splits), got more with num_splits=" +
          std::to_string(splitting.max_parts));
    }
  }
  plan.merged_rows = static_cast<int32_t>(merged_rows);
}

}  // namespace exactile
