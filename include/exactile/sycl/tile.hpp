// exactile/sycl/tile.hpp - the scheduler loop of every SYCL kernel: a work-group's walk
// through its tiles. Device code.
#pragma once

#include <exactile/scheduler/concepts.hpp>
#include <exactile/sycl/params.hpp>
#include <exactile/tile_rows.hpp>
#include <sycl/sycl.hpp>

namespace exactile::sycl {

namespace ext = ::sycl::ext;  // the vendor's macros name sycl::ext, which in here is this namespace

/// What variants of the scores compute with (exactile/scores.hpp).
struct Math {
  EXACTILE_HOST_DEVICE static float tanh(float x) { return ::sycl::tanh(x); }
  EXACTILE_HOST_DEVICE static float exp2(float x) { return ::sycl::exp2(x); }
  /// Natural logarithm of sum * 2^(reference * scale_log2).
  EXACTILE_HOST_DEVICE static float lse(float reference, float scale_log2, float sum) {
    constexpr float kLn2 = 0.693147180559945309f;
    return (reference * scale_log2 + ::sycl::log2(sum)) * kLn2;
  }
};

/// Lies in work-group local memory: work-item 0 walks the scheduler, because a walk may take its
/// next index from a counter, and all work-items see the tile. Barriers between are the kernel's.
template <TileScheduler Scheduler>
struct TileFeed {
  WorkTile tile;
  bool valid;

  EXACTILE_HOST_DEVICE void start(const typename Scheduler::Params& schedule, int32_t work_group) {
    publish(*new (walk_) Scheduler(schedule, work_group));
  }
  EXACTILE_HOST_DEVICE void advance() {
    auto& walk = *reinterpret_cast<Scheduler*>(walk_);
    walk.advance();
    publish(walk);
  }

 private:
  EXACTILE_HOST_DEVICE void publish(const Scheduler& walk) {
    valid = walk.is_valid();
    if (valid) tile = walk.tile();
  }

  alignas(Scheduler) unsigned char walk_[sizeof(Scheduler)];
};

}  // namespace exactile::sycl
