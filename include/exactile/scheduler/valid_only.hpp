// exactile/scheduler/valid_only.hpp - one work-group per tile that exists, and no other.
#pragma once

#include <exactile/scheduler/tile_list.hpp>

namespace exactile {

class ValidOnlyIndividual {
 public:
  using Params = CompactList;

  EXACTILE_HOST_DEVICE constexpr ValidOnlyIndividual(const Params& list, int32_t work_group)
      : valid_(work_group < list.num_tiles()) {
    if (valid_) tile_ = list.tile(work_group);
  }

  EXACTILE_HOST_DEVICE static constexpr int32_t num_work_groups(const Params& list,
                                                                int32_t /*workers*/) {
    return list.max_tiles();
  }
  EXACTILE_HOST_DEVICE constexpr bool is_valid() const { return valid_; }
  EXACTILE_HOST_DEVICE constexpr WorkTile tile() const { return tile_; }
  EXACTILE_HOST_DEVICE constexpr void advance() { valid_ = false; }

 private:
  WorkTile tile_{};
  bool valid_;
};
static_assert(TileScheduler<ValidOnlyIndividual>);

}  // namespace exactile
