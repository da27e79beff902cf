// exactile/cuda/sm90/page_loader.hpp - keys and values in pages: two of the producer's warps load
// them, one K and one V, a TMA box for each lane.
//
// A box lies in one page, so it may be as small as 8 keys; one thread would take longer to look up
// the pages and to issue so many than the consumers take for a block. What the warps read of a tile
// is guarded as in packed_tiles.hpp.
#pragma once

#include <exactile/cuda/sm90/pipeline.hpp>

namespace exactile::cuda::sm90 {

/// Of K or of V, whose tensor map is over (head_dim, heads, keys of a page, pages).
struct PagedMatrix {
  const TensorMap& map;
  int64_t *full, *empty;  ///< (kStages,) barriers
  ptx::uint32_t first;    ///< address of the first stage in shared memory
  ptx::uint32_t bytes;    ///< from a stage to the next
};

/// Loads K, or V, of kColumns columns; by one warp.
template <class Traits, int kColumns>
class PageLoader {
  static constexpr int kRowBytes = Traits::kChunk * sizeof(typename Traits::Element);
  static constexpr int kChunks = kColumns / Traits::kChunk;
  static_assert(Traits::kMask != MaskKind::kPacked);

 public:
  EXACTILE_DEVICE PageLoader(const PagedMatrix& matrix, const PrefillParams& params)
      : matrix_(matrix), params_(params), lane_(static_cast<int32_t>(threadIdx.x % 32)) {}

  /// The blocks of a tile.
  EXACTILE_DEVICE void load(const TileSlot<WholeKeys>& tile) {
    const TileRecord& rows = tile.work.rows;
    pages_ = params_.pages.pages + rows.k_begin * params_.pages.row_stride;
    head_ = tile.work.head * params_.tile_heads / params_.group;
#pragma unroll 1
    for (int32_t n = tile.n_end - 1; n >= tile.n_begin; --n, stage_.advance()) {
      const int32_t key = n * Traits::kBlockN;
      load_block(key, ceil_div(min(rows.k_len - key, Traits::kBlockN), params_.page_box));
    }
  }

 private:
  /// Boxes from `key` on, each of which is one for every chunk of the columns.
  EXACTILE_DEVICE void load_block(int32_t key, int32_t boxes) const {
    const int32_t box_n = params_.page_box, items = boxes * kChunks, i = stage_.index();
    const ptx::uint32_t barrier = ptx::shared_address(&matrix_.full[i]);
    const ptx::uint32_t to = matrix_.first + i * matrix_.bytes;
    Place at = place_of(key + min(lane_, items - 1) / kChunks * box_n);  // under the wait
    ptx::mbarrier_wait(ptx::shared_address(&matrix_.empty[i]), stage_.phase() ^ 1);
    if (lane_ == 0) ptx::mbarrier_arrive_expect_tx(barrier, items * box_n * kRowBytes);
    __syncwarp();
#pragma unroll 1
    for (int32_t item = lane_; item < items; item += 32) {
      const int32_t row = item / kChunks * box_n, chunk = item % kChunks;
      if (item >= 32) at = place_of(key + row);
      ptx::tma_load(to + (chunk * Traits::kBlockN + row) * kRowBytes, &matrix_.map, barrier,
                    chunk * Traits::kChunk, head_, at.slot, at.page);
    }
  }

  struct Place {
    int32_t page, slot;
  };
  /// A page that the cache does not have is not clamped: TMA reads zeros there.
  EXACTILE_DEVICE Place place_of(int32_t key) const {
    const PageTable::Place at = params_.pages.place_of(key);
    return {pages_[at.index], at.slot};
  }

  const PagedMatrix& matrix_;
  const PrefillParams& params_;
  const int32_t lane_;
  const int32_t* pages_;  // of the sequence
  int32_t head_;
  Stage<Traits::kStages> stage_;
};

template <class Traits, int kColumns>
EXACTILE_DEVICE void load_pages(const PagedMatrix& matrix, const PrefillParams& params,
                                SharedStorage<Traits>& shared) {
  PageLoader<Traits, kColumns> loader(matrix, params);
  for_each_slot(shared, [&](int32_t i, const typename SharedStorage<Traits>::Slot& tile) {
    ptx::mbarrier_arrive(ptx::shared_address(&shared.q_full[i]));
    if (tile.valid) loader.load(tile);
  });
}

/// The keys and values of every tile; by the producer's warps, of which two do so.
template <class Traits>
EXACTILE_DEVICE void load_pages(const TensorMap& k_map, const TensorMap& v_map,
                                const PrefillParams& params, SharedStorage<Traits>& shared) {
  const int32_t warp = ptx::warp_uniform(threadIdx.x / 32);
  if (warp == 1) {
    const PagedMatrix k{k_map, shared.k_full, shared.k_empty, ptx::shared_address(&shared.k[0]),
                        sizeof shared.k[0]};
    load_pages<Traits, Traits::kHeadDim>(k, params, shared);
  } else if (warp == 2) {
    const PagedMatrix v{v_map, shared.v_full, shared.v_empty, ptx::shared_address(&shared.v[0]),
                        sizeof shared.v[0]};
    load_pages<Traits, Traits::kHeadDimV>(v, params, shared);
  }
}

}  // namespace exactile::cuda::sm90
