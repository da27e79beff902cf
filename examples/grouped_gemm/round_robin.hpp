// round_robin.hpp - a policy of this project: worker w takes tiles w, w + workers, w + 2 *
// workers...
//
// It has no shared counter, so the same worker gets the same tiles in every launch.
#pragma once

#include <exactile/scheduler/tile_list.hpp>

class RoundRobin {
 public:
  struct Params {
    exactile::CompactList list;
    int workers;  // the stride: as many as are launched
  };

  EXACTILE_HOST_DEVICE constexpr RoundRobin(const Params& params, int work_group)
      : params_(params), index_(work_group) {}

  EXACTILE_HOST_DEVICE static constexpr int num_work_groups(const Params& params, int /*workers*/) {
    return params.workers;
  }
  EXACTILE_HOST_DEVICE constexpr bool is_valid() const { return index_ < params_.list.num_tiles(); }
  EXACTILE_HOST_DEVICE constexpr exactile::WorkTile tile() const {
    return params_.list.tile(index_);
  }
  EXACTILE_HOST_DEVICE constexpr void advance() { index_ += params_.workers; }

 private:
  Params params_;
  int index_;
};
static_assert(exactile::TileScheduler<RoundRobin>);
