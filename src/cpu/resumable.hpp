// src/cpu/resumable.hpp - policies with a counter, for threads that several runs share.
#pragma once

#include <exactile/scheduler/persistent.hpp>

namespace exactile::cpu {

/// A CountedList, and what a thread asks before it takes another tile from it.
struct ResumableList {
  CountedList counted;
  bool (*is_over)(const void* turn);
  const void* turn;  ///< of the thread alone
};

/// A policy with a counter that ends early when the thread's turn is over. Its next walk takes up
/// where the counter is, so a work-group can be begun as often as needed: the counter is all that
/// the policy may know of what it has given.
template <class Policy>
class Resumable {
 public:
  using Params = ResumableList;

  EXACTILE_HOST_DEVICE Resumable(const Params& params, int32_t work_group)
      : params_(params), walk_(params.counted, work_group) {}

  EXACTILE_HOST_DEVICE static constexpr int32_t num_work_groups(const Params& params,
                                                                int32_t workers) {
    return Policy::num_work_groups(params.counted, workers);
  }
  EXACTILE_HOST_DEVICE bool is_valid() const { return !left_ && walk_.is_valid(); }
  EXACTILE_HOST_DEVICE WorkTile tile() const { return walk_.tile(); }
  EXACTILE_HOST_DEVICE void advance() {
    left_ = params_.is_over(params_.turn);
    if (!left_) walk_.advance();
  }

 private:
  const Params& params_;
  Policy walk_;
  bool left_ = false;
};
static_assert(TileScheduler<Resumable<ValidOnlyPersistent>>);

/// What a shipped policy is on the CPU.
template <class Policy, class Params = typename Policy::Params>
struct OnCpu {
  using Type = Policy;
};
template <class Policy>
struct OnCpu<Policy, CountedList> {
  using Type = Resumable<Policy>;
};

}  // namespace exactile::cpu
