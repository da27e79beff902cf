// exactile/cuda/sm90/pipeline.hpp - the producer: one thread walks the tiles and loads them, but
// for keys in pages (page_loader.hpp).
#pragma once

#include <exactile/cuda/sm90/tile.hpp>

namespace exactile::cuda::sm90 {

/// One of kStages buffers, and how often they have all been used (its parity).
template <int kStages>
class Stage {
  static_assert((kStages & (kStages - 1)) == 0);

 public:
  EXACTILE_DEVICE int32_t index() const { return static_cast<int32_t>(uses_ % kStages); }
  EXACTILE_DEVICE ptx::uint32_t phase() const { return uses_ / kStages % 2; }
  EXACTILE_DEVICE void advance() { ++uses_; }

 private:
  ptx::uint32_t uses_ = 0;
};

/// How many lanes of a consuming warp say that it is done with a V.
template <class Traits>
inline constexpr int kLanesReleaseV = Traits::kMask == MaskKind::kPacked ? 32 : 1;

/// By one thread, before any other touches a barrier. Full: the loading thread arrives once, and
/// TMA counts bytes. All counts: docs/internals.md.
template <class Traits>
EXACTILE_DEVICE void init_barriers(SharedStorage<Traits>& shared) {
  constexpr int kConsumerWarps = 4 * Traits::kConsumers;
  constexpr int kSearching = Traits::kMask == MaskKind::kPacked ? kSearchWarps : 0;  // warps
#pragma unroll
  for (int i = 0; i < Traits::kQueries; ++i) {
    ptx::mbarrier_init(ptx::shared_address(&shared.q_full[i]), 1 + Traits::kSlotReaders);
    ptx::mbarrier_init(ptx::shared_address(&shared.slot_full[i]), 1);
    ptx::mbarrier_init(ptx::shared_address(&shared.q_empty[i]), 32 * kConsumerWarps);
  }
#pragma unroll
  for (int i = 0; i < Traits::kStages; ++i) {
    ptx::mbarrier_init(ptx::shared_address(&shared.k_full[i]), 1);
    ptx::mbarrier_init(ptx::shared_address(&shared.v_full[i]), 1);
    ptx::mbarrier_init(ptx::shared_address(&shared.k_empty[i]), kConsumerWarps);
    ptx::mbarrier_init(ptx::shared_address(&shared.v_empty[i]),
                       kLanesReleaseV<Traits> * kConsumerWarps + kSearching);
    ptx::mbarrier_init(ptx::shared_address(&shared.v_checked[i]), 32 * kSearchWarps);
  }
  ptx::fence_mbarrier_init();
}

/// Calls visit(query, tile) for every tile; by a warp. `visit` arrives at q_full.
template <class Traits, class Visit>
EXACTILE_DEVICE void for_each_slot(SharedStorage<Traits>& shared, Visit visit) {
  for (Stage<Traits::kQueries> query;; query.advance()) {
    const int32_t i = query.index();
    ptx::mbarrier_wait(ptx::shared_address(&shared.slot_full[i]), query.phase());
    const typename SharedStorage<Traits>::Slot tile = shared.slot[i];
    visit(i, tile);
    if (!tile.valid) return;
  }
}

/// Loads tile after tile. Q, and the slot that says which tile it is, have kQueries buffers, which
/// the consumers free with the tile's last QK^T: even of one, the next Q and K arrive under the
/// last softmax, PV and the epilogue.
template <class Traits>
class Producer {
  using Shared = SharedStorage<Traits>;
  static constexpr int kRowBytes = Traits::kChunk * sizeof(typename Traits::Element);

 public:
  EXACTILE_DEVICE Producer(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map,
                           const PrefillParams& params, Shared& shared)
      : q_map_(q_map), k_map_(k_map), v_map_(v_map), params_(params), shared_(shared) {
    ptx::prefetch_tensor_map(&q_map);
    ptx::prefetch_tensor_map(&k_map);
    ptx::prefetch_tensor_map(&v_map);
  }

  /// Loads Q and hands the tile over; returns the blocks to load.
  EXACTILE_DEVICE BlockRange load_q(const WorkTile& work, const typename Traits::Keys& keys) {
    const BlockRange blocks =
        keys.within(visited_blocks<Traits>(params_, work.rows), Traits::kBlockN);
    const int32_t i = wait_for_slot();
    TileSlot<WholeKeys>& slot = shared_.slot[i];
    slot = {.work = work, .n_begin = blocks.begin, .n_end = blocks.end, .valid = true};
    if constexpr (Traits::Keys::kSplits) shared_.slot[i].keys = keys;
    const int32_t last = (blocks.end - 1) * Traits::kBlockN;
#pragma unroll 1
    for (int c = 0; c < Traits::kConsumers; ++c) {
      shared_.last_keys[i][c] = visible_end<Traits>(params_, work, 64 * c) - last;
    }
    announce(i);
    const ptx::uint32_t full = ptx::shared_address(&shared_.q_full[i]);
    if (blocks.begin == blocks.end) {
      ptx::mbarrier_arrive(full);
      return blocks;
    }
    const int32_t rows = params_.tile_heads * params_.tile_tokens;
    ptx::mbarrier_arrive_expect_tx(full, rows * Traits::kHeadDim * sizeof(Element));
    const ptx::uint32_t to = ptx::shared_address(&shared_.q[i]);
#pragma unroll
    for (int c = 0; c < Traits::kHeadDim / Traits::kChunk; ++c) {
      ptx::tma_load(to + c * Traits::kBlockM * kRowBytes, &q_map_, full, c * Traits::kChunk,
                    work.head * params_.tile_heads, work.rows.q_begin);
    }
    return blocks;
  }

  EXACTILE_DEVICE void load_kv(const WorkTile& work, BlockRange blocks) {
    const int32_t head = work.head * params_.tile_heads / params_.group;
#pragma unroll 1
    for (int32_t n = blocks.end - 1; n >= blocks.begin; --n, stage_.advance()) {
      const int32_t key = work.rows.k_begin + n * Traits::kBlockN;
      const int32_t keys = num_keys<Traits>(work.rows) - n * Traits::kBlockN;
      const int32_t boxes = ceil_div(min(keys, Traits::kBlockN), Traits::kBoxN);
      const int32_t i = stage_.index();
      load_block<Traits::kHeadDim>(k_map_, shared_.k[i], shared_.k_empty[i], shared_.k_full[i],
                                   head, key, boxes);
      load_block<Traits::kHeadDimV>(v_map_, shared_.v[i], shared_.v_empty[i], shared_.v_full[i],
                                    head, key, boxes);
    }
  }

  /// Tells the consumers that there is no further tile.
  EXACTILE_DEVICE void finish() {
    const int32_t i = wait_for_slot();
    shared_.slot[i].valid = false;
    announce(i);
    ptx::mbarrier_arrive(ptx::shared_address(&shared_.q_full[i]));
  }

 private:
  using Element = typename Traits::Element;

  EXACTILE_DEVICE void announce(int32_t i) const {
    if constexpr (Traits::kSlotReaders > 0) {
      ptx::mbarrier_arrive(ptx::shared_address(&shared_.slot_full[i]));
    }
  }

  /// Index of the next one, free.
  EXACTILE_DEVICE int32_t wait_for_slot() {
    const int32_t i = slot_.index();
    ptx::mbarrier_wait(ptx::shared_address(&shared_.q_empty[i]), slot_.phase() ^ 1);
    slot_.advance();
    return i;
  }

  /// Boxes of one kv head, from a row of the packed tensor on.
  template <int kColumns, class Matrix>
  EXACTILE_DEVICE void load_block(const TensorMap& map, Matrix& to, int64_t& empty, int64_t& full,
                                  int32_t head, int32_t key, int32_t boxes) {
    constexpr int kBoxBytes = Traits::kBoxN * kRowBytes;  // of one chunk
    const ptx::uint32_t barrier = ptx::shared_address(&full), start = ptx::shared_address(&to);
    ptx::mbarrier_wait(ptx::shared_address(&empty), stage_.phase() ^ 1);
    if constexpr (Traits::kBoxN == Traits::kBlockN) boxes = 1;
    ptx::mbarrier_arrive_expect_tx(barrier, boxes * kBoxBytes * (kColumns / Traits::kChunk));
#pragma unroll 1
    for (int32_t i = 0; i < boxes; ++i) {
      const int32_t row = min(i * Traits::kBoxN, Traits::kBlockN - Traits::kBoxN);  // may overlap
#pragma unroll
      for (int c = 0; c < kColumns / Traits::kChunk; ++c) {
        ptx::tma_load(start + (c * Traits::kBlockN + row) * kRowBytes, &map, barrier,
                      c * Traits::kChunk, head, key + row);
      }
    }
  }

  const TensorMap& q_map_;
  const TensorMap& k_map_;
  const TensorMap& v_map_;
  const PrefillParams& params_;
  Shared& shared_;
  Stage<Traits::kQueries> slot_;
  Stage<Traits::kStages> stage_;
};

}  // namespace exactile::cuda::sm90
