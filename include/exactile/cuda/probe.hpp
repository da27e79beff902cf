// exactile/cuda/probe.hpp - instrumentation of a kernel, a template argument: none, or a timeline.
#pragma once

#include <exactile/cuda/ptx.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile::cuda {

/// A kernel's template argument. Duties:
///   1. Every thread makes one at the start of a work-group; `is_writer` is true for one of them,
///   and
///      that one computes.
///   2. Hooks are called by whole warps, in the order below, for each tile; `found_no_tile` alone
///      by work-groups that never had one.
///   3. A hook changes no result and does not block.
template <class Probe>
concept KernelProbe =
    requires(Probe probe, const PrefillParams params, const WorkTile work, bool is_writer) {
      Probe(params, is_writer);
      probe.found_no_tile();
      probe.mainloop_begins(work);
      probe.epilogue_begins();
      probe.tile_ends();
    };

/// That of every kernel that is shipped: leaves no instruction behind.
class NoProbe {
 public:
  EXACTILE_DEVICE NoProbe(const PrefillParams& /*params*/, bool /*is_writer*/) {}
  EXACTILE_DEVICE void found_no_tile() const {}
  EXACTILE_DEVICE void mainloop_begins(const WorkTile& /*work*/) const {}
  EXACTILE_DEVICE void epilogue_begins() const {}
  EXACTILE_DEVICE void tile_ends() const {}
};
static_assert(KernelProbe<NoProbe>);

/// Writes params.timeline. Every record has its place, so that no counter is waited for: a
/// work-group without a tile at its index, a tile at gridDim.x + head * total_q + q_begin.
class Timeline {
 public:
  EXACTILE_DEVICE Timeline(const PrefillParams& params, bool is_writer)
      : params_(params), is_writer_(is_writer), prologue_ns_(ptx::global_timer_ns()) {}

  EXACTILE_DEVICE void found_no_tile() {
    if (!is_writer_) return;
    index_ = static_cast<int32_t>(blockIdx.x);
    begin({{}, -1});
    record().end_ns = ptx::global_timer_ns();
  }

  EXACTILE_DEVICE void mainloop_begins(const WorkTile& work) {
    if (is_writer_) {
      index_ =
          static_cast<int32_t>(gridDim.x + work.head * params_.lse_head_stride + work.rows.q_begin);
      begin(work);
      record().mainloop_ns = ptx::global_timer_ns();
    }
    __syncwarp();
  }

  EXACTILE_DEVICE void epilogue_begins() {
    if (is_writer_) record().epilogue_ns = ptx::global_timer_ns();
    __syncwarp();
  }

  /// The next tile's prologue begins: waiting for it belongs to it.
  EXACTILE_DEVICE void tile_ends() {
    if (is_writer_) {
      prologue_ns_ = ptx::global_timer_ns();
      record().end_ns = prologue_ns_;
    }
    __syncwarp();
  }

 private:
  EXACTILE_DEVICE TimelineRecord& record() const { return params_.timeline[index_]; }

  EXACTILE_DEVICE void begin(const WorkTile& work) const {
    TimelineRecord& to = record();
    to.prologue_ns = prologue_ns_;
    to.rows = work.rows;
    to.head = work.head;
    to.work_group = static_cast<int32_t>(blockIdx.x);
    to.multiprocessor = ptx::multiprocessor();
    atomicAdd(&to.times_written, 1);
  }

  const PrefillParams& params_;
  bool is_writer_;
  int32_t index_ = 0;
  int64_t prologue_ns_;
};
static_assert(KernelProbe<Timeline>);

}  // namespace exactile::cuda
