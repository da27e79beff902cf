// exactile/scheduler/persistent.hpp - as many work-groups as the device runs at a time; each takes
// the next tile of the list from a shared counter.
#pragma once

#include <exactile/scheduler/tile_list.hpp>

namespace exactile {

/// Not nested in the policy: SYCL takes no nested class as the parameter of a kernel.
struct CountedList {
  CompactList list;
  int32_t* counter;  ///< shared by all work-groups; 0 at launch, and again when the last one ends
  int32_t work_groups;  ///< launched, as num_work_groups() says: a policy may stride by it

  /// No field has a default: the policy knows by `work_groups` which work-group ends last, and a
  /// counter that is not reset would hide every tile from the next launch.
  EXACTILE_HOST_DEVICE constexpr CountedList(const CompactList& tiles, int32_t* shared_counter,
                                             int32_t num_work_groups)
      : list(tiles), counter(shared_counter), work_groups(num_work_groups) {}
};

class ValidOnlyPersistent {
 public:
  using Params = CountedList;

  EXACTILE_HOST_DEVICE constexpr ValidOnlyPersistent(const Params& params, int32_t /*work_group*/)
      : params_(params), index_(next()) {}

  EXACTILE_HOST_DEVICE static constexpr int32_t num_work_groups(const Params& params,
                                                                int32_t workers) {
    return min(params.list.max_tiles(), workers);
  }
  EXACTILE_HOST_DEVICE constexpr bool is_valid() const { return index_ < params_.list.num_tiles(); }
  EXACTILE_HOST_DEVICE constexpr WorkTile tile() const { return params_.list.tile(index_); }
  EXACTILE_HOST_DEVICE constexpr void advance() { index_ = next(); }

 private:
  /// Every work-group takes one index past the end; none is taken after the last of these. It
  /// sets the counter back, so that the next launch finds it at 0.
  EXACTILE_HOST_DEVICE constexpr int32_t next() const {
    const int32_t index = fetch_add(params_.counter, 1);
    const int32_t past_end = index - params_.list.num_tiles();
    if (past_end >= 0 && past_end + 1 == params_.work_groups) store(params_.counter, 0);
    return index;
  }

  Params params_;
  int32_t index_;
};
static_assert(TileScheduler<ValidOnlyPersistent>);

}  // namespace exactile
