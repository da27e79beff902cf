// src/api/splitting.hpp - split-KV: how many work-groups share the keys of a tile, and their list.
#pragma once

#include "base/backend.hpp"

namespace exactile {

/// A tile that visits `blocks` key blocks is split into ceil(blocks / max_blocks) parts, at most
/// max_parts and one for each block.
struct Splitting {
  int32_t max_blocks = 1;
  int32_t max_parts = 1;

  bool splits() const { return max_parts > 1; }
  int32_t parts(int32_t blocks) const;
};

/// What the request asks for; where that is the planner's choice: what takes the least time on as
/// many workers as the target has, by its model. Nothing that it looks at depends on the scheduler,
/// but one that was asked for by name does not split unasked: so their results are the same bits.
Splitting choose_splitting(const PlanRequest& request, const TileListSpec& spec,
                           const Target& target, const Plan& plan);

/// Records of the list, were its tiles split.
int64_t count_parts(const TileListSpec& spec, const Splitting& splitting);

/// Puts the parts of each tile in its place: makes plan.records, splits and split_tiles of
/// `num_tiles` records.
void split_list(const TileListSpec& spec, const Splitting& splitting, int64_t num_tiles,
                Plan& plan);

}  // namespace exactile
