// exactile/cuda/sm90/packed_tiles.hpp - tiles of several sequences: the producer warpgroup's warps
// 1 to 3 prepare a tile while the consumers compute the one before: which keys each token sees
// (warp 1) and which blocks of V hold Inf or NaN (warps 2 and 3).
//
// Barriers: slot_full says that the producer has written a slot; every lane arrives at its q_full
// when it has read it. v_checked says that a block of V has been looked through.
#pragma once

#include <exactile/cuda/sm90/nonfinite.hpp>
#include <exactile/cuda/sm90/pipeline.hpp>

namespace exactile::cuda::sm90 {

/// Which keys the tokens of a tile see; by one warp.
template <class Traits>
EXACTILE_DEVICE void find_key_ranges(const PrefillParams& params, SharedStorage<Traits>& shared) {
  for_each_slot(shared, [&](int32_t i, const typename SharedStorage<Traits>::Slot& tile) {
    const TileRecord& rows = tile.work.rows;
    if (tile.valid && rows.is_packed()) {
      for (int32_t t = threadIdx.x % 32; t < params.tile_tokens; t += 32) {
        shared.keys[i][t] = keys_of_token(params, rows, rows.q_begin + t);
      }
    }
    ptx::mbarrier_arrive(ptx::shared_address(&shared.q_full[i]));
  });
}

/// Whether there are Inf or NaN in V, block by block; by kSearchWarps warps.
template <class Traits>
EXACTILE_DEVICE void find_non_finite(SharedStorage<Traits>& shared, int32_t searcher) {
  const int32_t thread = 32 * searcher + static_cast<int32_t>(threadIdx.x % 32);
  Stage<Traits::kStages> stage;
  for_each_slot(shared, [&](int32_t i, const typename SharedStorage<Traits>::Slot& tile) {
    ptx::mbarrier_arrive(ptx::shared_address(&shared.q_full[i]));
    if (!tile.valid) return;
    const bool packed = tile.work.rows.is_packed();
    for (int32_t n = tile.n_end - 1; n >= tile.n_begin; --n, stage.advance()) {
      const int32_t at = stage.index();
      ptx::mbarrier_wait(ptx::shared_address(&shared.v_full[at]), stage.phase());
      bool found = false;
      if (packed) {
        // As many rows as PV will read, loaded or left from before.
        const int32_t keys = num_keys<Traits>(tile.work.rows) - n * Traits::kBlockN;
        const int32_t rows = keys <= Traits::kNarrowN ? Traits::kNarrowN : Traits::kBlockN;
        const NonFiniteValues<Traits> values(shared.v[at], rows);
        found = __any_sync(~0u, values.any_not_finite(thread, 32 * kSearchWarps));
      }
      const bool first = thread % 32 == 0;
      if (first) shared.not_finite[at][searcher] = found;
      ptx::mbarrier_arrive(ptx::shared_address(&shared.v_checked[at]));
      __syncwarp();  // all lanes have read V before the first arrives for the warp
      ptx::mbarrier_arrive_if(first, ptx::shared_address(&shared.v_empty[at]));
    }
  });
}

}  // namespace exactile::cuda::sm90
