// exactile/cpu/kernel.hpp - one work-group: the scheduler loop around load, mainloop and store.
#pragma once

#include <exactile/cpu/mainloop.hpp>
#include <exactile/cpu/prefetch.hpp>
#include <exactile/cpu/tile_io.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

/// One work-group. `buffer`: Scratch<Traits>::bytes(), 64-byte aligned, of this thread alone; it
/// begins with a Staged that was empty at the thread's first work-group of this launch.
template <class Traits, TileScheduler Scheduler>
void prefill_kernel(const PrefillParams& params, const typename Scheduler::Params& schedule,
                    int32_t work_group, void* buffer) {
  auto& scratch = Scratch<Traits>::place(buffer, params);
  const typename MicroKernel<Traits>::Session session;
  Scheduler walk(schedule, work_group);
  while (walk.is_valid()) {
    const WorkTile work = walk.tile();
    walk.advance();  // before the work: what comes next is fetched while this is computed
    Prefetch<Traits> next(params);
    if (walk.is_valid()) next.start(walk.tile());
    const TileRows tile(params, work);
    KvSource<Traits> source(params, work.rows, tile.kv_head, scratch);
    TileIo<Traits>::load(params, tile, scratch);
    Mainloop<Traits> mainloop(params, source, scratch, next);
    mainloop.run(tile.rows());
    if (TileIo<Traits>::store(params, tile, scratch) == Sums::kNotFinite) {
      source.leave_out_not_finite();
      mainloop.run(tile.rows());
      TileIo<Traits>::store(params, tile, scratch);
    }
  }
  if (params.stream_out) stream_fence();
}

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
