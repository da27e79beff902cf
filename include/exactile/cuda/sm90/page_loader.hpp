// exactile/cuda/sm90/page_loader.hpp - keys and values in pages: a warp of the producer's loads
// them, a TMA box for each lane.
//
// A box lies in one page, so it may be as small as 8 keys; one thread would take longer to look up
// the pages and to issue so many than the consumers take for a block. What the warp reads of a tile
// is guarded as in packed_tiles.hpp.
#pragma once

#include <exactile/cuda/sm90/pipeline.hpp>

namespace exactile::cuda::sm90 {

/// Tensor maps are over (head_dim, heads, keys of a page, pages).
template <class Traits>
class PageLoader {
  using Shared = SharedStorage<Traits>;
  static constexpr int kRowBytes = Traits::kChunk * sizeof(typename Traits::Element);
  static_assert(Traits::kMask != MaskKind::kPacked);

 public:
  EXACTILE_DEVICE PageLoader(const TensorMap& k_map, const TensorMap& v_map,
                             const PrefillParams& params, Shared& shared)
      : k_map_(k_map),
        v_map_(v_map),
        params_(params),
        shared_(shared),
        lane_(static_cast<int32_t>(threadIdx.x % 32)) {}

  /// The blocks of a tile.
  EXACTILE_DEVICE void load(const typename Shared::Slot& tile) {
    const TileRecord& rows = tile.work.rows;
    pages_ = params_.pages.pages + rows.k_begin * params_.pages.row_stride;
    head_ = tile.work.head * params_.tile_heads / params_.group;
#pragma unroll 1
    for (int32_t n = tile.n_end - 1; n >= tile.n_begin; --n, stage_.advance()) {
      const int32_t key = n * Traits::kBlockN;
      const int32_t boxes = ceil_div(min(rows.k_len - key, Traits::kBlockN), params_.page_box);
      const int32_t i = stage_.index();
      load_block<Traits::kHeadDim>(k_map_, shared_.k[i], shared_.k_empty[i], shared_.k_full[i], key,
                                   boxes);
      load_block<Traits::kHeadDimV>(v_map_, shared_.v[i], shared_.v_empty[i], shared_.v_full[i],
                                    key, boxes);
    }
  }

 private:
  /// Loads boxes from `key` on, each of which is one for every chunk of the columns.
  template <int kColumns, class Matrix>
  EXACTILE_DEVICE void load_block(const TensorMap& map, Matrix& to, int64_t& empty, int64_t& full,
                                  int32_t key, int32_t boxes) const {
    constexpr int kChunks = kColumns / Traits::kChunk;
    const int32_t box_n = params_.page_box, items = boxes * kChunks;
    const ptx::uint32_t barrier = ptx::shared_address(&full), start = ptx::shared_address(&to);
    Place at = place_of(key + min(lane_, items - 1) / kChunks * box_n);  // under the wait
    ptx::mbarrier_wait(ptx::shared_address(&empty), stage_.phase() ^ 1);
    if (lane_ == 0) ptx::mbarrier_arrive_expect_tx(barrier, items * box_n * kRowBytes);
    __syncwarp();
#pragma unroll 1
    for (int32_t item = lane_; item < items; item += 32) {
      const int32_t row = item / kChunks * box_n, chunk = item % kChunks;
      if (item >= 32) at = place_of(key + row);
      ptx::tma_load(start + (chunk * Traits::kBlockN + row) * kRowBytes, &map, barrier,
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

  const TensorMap& k_map_;
  const TensorMap& v_map_;
  const PrefillParams& params_;
  Shared& shared_;
  const int32_t lane_;
  const int32_t* pages_;  // of the sequence
  int32_t head_;
  Stage<Traits::kStages> stage_;
};

/// The keys and values of every tile; by one warp.
template <class Traits>
EXACTILE_DEVICE void load_pages(const TensorMap& k_map, const TensorMap& v_map,
                                const PrefillParams& params, SharedStorage<Traits>& shared) {
  PageLoader<Traits> loader(k_map, v_map, params, shared);
  for_each_slot(shared, [&](int32_t i, const typename SharedStorage<Traits>::Slot& tile) {
    ptx::mbarrier_arrive(ptx::shared_address(&shared.q_full[i]));
    if (tile.valid) loader.load(tile);
  });
}

}  // namespace exactile::cuda::sm90
