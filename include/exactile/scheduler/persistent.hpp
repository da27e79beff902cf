// exactile/scheduler/persistent.hpp - as many work-groups as the device runs at a time; each takes
// the next tile of the list from a shared counter.
#pragma once

#include <exactile/scheduler/tile_list.hpp>

namespace exactile {

/// Not nested in the policy: SYCL takes no nested class as the parameter of a kernel.
struct CountedList {
  CompactList list;
  int32_t* counter;  ///< shared by all work-groups; 0 at launch
};

class ValidOnlyPersistent {
 public:
  using Params = CountedList;

  EXACTILE_HOST_DEVICE constexpr ValidOnlyPersistent(const Params& params, int32_t /*work_group*/)
      : params_(params), index_(fetch_add(params.counter, 1)) {}

  EXACTILE_HOST_DEVICE static constexpr int32_t num_work_groups(const Params& params,
                                                                int32_t workers) {
    return min(params.list.max_tiles(), workers);
  }
  EXACTILE_HOST_DEVICE constexpr bool is_valid() const { return index_ < params_.list.num_tiles(); }
  EXACTILE_HOST_DEVICE constexpr WorkTile tile() const { return params_.list.tile(index_); }
  EXACTILE_HOST_DEVICE constexpr void advance() { index_ = fetch_add(params_.counter, 1); }

 private:
  Params params_;
  int32_t index_;
};
static_assert(TileScheduler<ValidOnlyPersistent>);

}  // namespace exactile
