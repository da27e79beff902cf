// exactile/cuda/sm90/kernel.hpp - a work-group: one warpgroup loads, the others compute.
#pragma once

#include <exactile/cuda/probe.hpp>
#include <exactile/cuda/sm90/epilogue.hpp>
#include <exactile/cuda/sm90/mainloop.hpp>
#include <exactile/cuda/sm90/packed_tiles.hpp>
#include <exactile/cuda/sm90/page_loader.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile::cuda::sm90 {

/// Storage for a Scheduler that one thread alone starts: a walk may take its index from a counter.
template <class Scheduler>
union Walk {
  EXACTILE_DEVICE Walk() : none() {}
  char none;
  Scheduler scheduler;
};

template <class Traits, TileScheduler Scheduler, KernelProbe Probe = NoProbe>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    prefill_kernel(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                   const __grid_constant__ TensorMap v_map,
                   const __grid_constant__ typename Traits::Params params,
                   const __grid_constant__ typename Scheduler::Params schedule) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<SharedStorage<Traits>*>(shared_bytes);

  Probe probe(params, threadIdx.x == 128);  // the first consumer
  ptx::wait_for_previous_grids();           // one of them may have planned the tiles
  Walk<Scheduler> walk;
  bool valid = false;
  if (threadIdx.x == 0) {
    walk.scheduler = Scheduler(schedule, blockIdx.x);
    init_barriers(shared);
    valid = walk.scheduler.is_valid();
  }
  if (!__syncthreads_or(valid)) {
    probe.found_no_tile();
    return;
  }

  const int32_t warpgroup = ptx::warp_uniform(threadIdx.x / 128);
  if (warpgroup == 0) {
    ptx::set_max_registers_down<Traits::kProducerRegisters>();
    if constexpr (Traits::kMask == MaskKind::kPacked) {
      const int32_t warp = ptx::warp_uniform(threadIdx.x / 32);
      if (warp == 1) find_key_ranges(params, shared);
      if (warp > 1) find_non_finite(shared, warp - 2);
    }
    constexpr bool kInPages = !Traits::KvLayout::kOneRun;
    if constexpr (kInPages) load_pages(k_map, v_map, params, shared);
    if (threadIdx.x != 0) return;
    Producer<Traits> producer(q_map, k_map, v_map, params, shared);
    while (walk.scheduler.is_valid()) {
      WorkTile work = walk.scheduler.tile();
      const typename Traits::Keys keys(params, work);
      const BlockRange blocks = producer.load_q(work, keys);
      walk.scheduler.advance();  // before the long part: what comes next is fetched meanwhile
      if constexpr (!kInPages) producer.load_kv(work, blocks);
    }
    producer.finish();
  } else {
    ptx::set_max_registers_up<Traits::kConsumerRegisters>();
    Mainloop<Traits> mainloop(params, shared, warpgroup - 1);
    for (Stage<Traits::kQueries> query;; query.advance()) {
      ptx::mbarrier_wait(ptx::shared_address(&shared.q_full[query.index()]), query.phase());
      const typename SharedStorage<Traits>::Slot tile = shared.slot[query.index()];
      if (!tile.valid) return;
      float o[Traits::kHeadDimV / 2];
      OnlineSoftmax softmax;
      probe.mainloop_begins(tile.work);
      const bool has_rows = mainloop.run(tile, query.index(), o, softmax);
      probe.epilogue_begins();
      if (has_rows) Epilogue<Traits>::store(params, tile, mainloop.row(), o, softmax);
      probe.tile_ends();
    }
  }
}

}  // namespace exactile::cuda::sm90
