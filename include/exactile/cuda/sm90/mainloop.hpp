// exactile/cuda/sm90/mainloop.hpp - a query tile against its keys: QK^T, mask, softmax, PV.
//
// Each consumer warpgroup computes 64 rows. Letters: M its rows, N keys of a block (kKeys: kBlockN
// or, of a tile's last block, kNarrowN), D head_dim, Dv head_dim_v.
//   s  (M, N)   fp32 scores of block n
//   p  (M, N)   probabilities, operand: of block n + 1, and of block n which are made meanwhile
//   o  (M, Dv)  fp32, not yet divided by the row sum
// Blocks are visited from the last to the first. QK^T of block n is issued before PV of block
// n + 1, so that both run under the softmax of block n. A narrow block leaves out only
// masked keys, so results are bitwise the same.
#pragma once

#include <exactile/cuda/sm90/nonfinite.hpp>
#include <exactile/cuda/sm90/pipeline.hpp>
#include <exactile/cuda/sm90/softmax.hpp>
#include <exactile/cuda/wgmma.hpp>

namespace exactile::cuda::sm90 {

template <class Traits>
class Mainloop {
  using Element = typename Traits::Element;
  using Shared = SharedStorage<Traits>;
  using Layout = Swizzled<Traits::kChunk>;
  static constexpr int kBlockM = Traits::kBlockM;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kNarrowN = Traits::kNarrowN;

 public:
  using Output = float[Traits::kHeadDimV / 2];
  using Probabilities = ptx::uint32_t[kBlockN / 4];

  /// consumer: which of the consumer warpgroups.
  EXACTILE_DEVICE Mainloop(const PrefillParams& params, Shared& shared, int32_t consumer)
      : params_(params),
        shared_(shared),
        consumer_(consumer),
        is_leader_(threadIdx.x % 32 == 0),
        zero_(params.tile_heads >> 31) {}

  /// Computes the tile whose Q is full, over blocks [n_begin, n_end). query: which of the buffers.
  /// False: none of this warpgroup's rows exists.
  EXACTILE_DEVICE bool run(const typename Shared::Slot& tile, int32_t query, Output& o,
                           OnlineSoftmax& softmax) {
    query_ = query;
    packed_ = ptx::warp_uniform(is_packed<Traits>(tile.work.rows));
    n_begin_ = ptx::warp_uniform(tile.n_begin);
    const int32_t n_end = ptx::warp_uniform(tile.n_end);
    if (n_begin_ == n_end) {
      ptx::mbarrier_arrive(ptx::shared_address(&shared_.q_empty[query_]));
      clear(o);
      return true;
    }
    // Not where tiles may hold several sequences: these keep all consumers in step.
    if constexpr (Traits::kMask != MaskKind::kPacked) {
      const int32_t rows = ptx::warp_uniform(num_rows<Traits>(params_, tile.work.rows));
      if (64 * consumer_ >= rows) {
        skip(n_end);
        return false;
      }
    }
    attend(tile, n_end, o, softmax);
    return true;
  }

  /// Row in the tile of this thread's first row; the second is 8 further on.
  EXACTILE_DEVICE static int32_t row() {
    const ptx::uint32_t thread = ptx::thread_now() - 128;
    return static_cast<int32_t>(thread / 32 * 16 + thread % 32 / 4);
  }

 private:
  /// Frees what the others compute with, buffer by buffer as it fills.
  EXACTILE_DEVICE void skip(int32_t n_end) {
#pragma unroll 1
    for (int32_t n = n_end - 1; n >= n_begin_; --n, stage_.advance()) {
      wait(shared_.k_full[stage_.index()], stage_);
      __syncwarp();  // one lane arrives for all: elsewhere wgmma holds the warp together
      release_keys(n);
      wait(shared_.v_full[stage_.index()], stage_);
      __syncwarp();
      release_values(stage_.index());
    }
  }

  EXACTILE_DEVICE void attend(const typename Shared::Slot& tile, int32_t n_end, Output& o,
                              OnlineSoftmax& softmax) {
    RowMask<Traits> mask;
    int32_t n = n_end - 1;
    const bool narrow = ptx::warp_uniform(shared_.last_keys[query_][consumer_]) <= kNarrowN;
    if (narrow) {
      first_block<kNarrowN>(tile, n, mask, o, softmax);
    } else {
      first_block<kBlockN>(tile, n, mask, o, softmax);
    }
    if (!packed_) clear_values(tile.work.rows.k_len - n * kBlockN, narrow ? kNarrowN : kBlockN);
    if (narrow) {
      if (--n < n_begin_) return last_values<kNarrowN>(o, softmax);
      constexpr bool kMayMask = Traits::kMask != MaskKind::kFull;
      step<kMayMask ? BlockKind::kMasked : BlockKind::kUnmasked, kNarrowN>(n, mask, o, softmax);
    }
    if constexpr (Traits::kMask == MaskKind::kFull) {
      for (--n; n > n_begin_; n -= 2) two_steps(n, mask, o, softmax);
      if (n == n_begin_) step<BlockKind::kUnmasked, kBlockN>(n, mask, o, softmax);
    } else {
      // Masked blocks, unmasked, masked; the second iteration has masked blocks only.
      int32_t unmasked_end = unmasked_.end;
      for (--n; n >= n_begin_; unmasked_end = n_begin_) {
        for (; n >= unmasked_end; --n) step<BlockKind::kMasked, kBlockN>(n, mask, o, softmax);
        if constexpr (Traits::kPairs) {
          for (; n > unmasked_.begin; n -= 2) two_steps(n, mask, o, softmax);
        }
        for (; n >= unmasked_.begin; --n) step<BlockKind::kUnmasked, kBlockN>(n, mask, o, softmax);
      }
    }
    last_values<kBlockN>(o, softmax);
  }

  /// QK^T and softmax of the first block that is visited.
  template <int kKeys>
  EXACTILE_DEVICE void first_block(const typename Shared::Slot& tile, int32_t n,
                                   RowMask<Traits>& mask, Output& o, OnlineSoftmax& softmax) {
    wait(shared_.k_full[stage_.index()], stage_);
    float s[kKeys / 2];
    issue_scores(s);
    // Under it, what is not needed before.
    clear(o);
    const BlockRange unmasked = unmasked_blocks<Traits>(params_, tile.work, row() / 64 * 64);
    unmasked_ = {ptx::warp_uniform(max(unmasked.begin, n_begin_)),
                 ptx::warp_uniform(max(unmasked.end, n_begin_))};
    mask = RowMask<Traits>(params_, tile.work, row(), shared_.keys[query_]);
    scores_ = RowScores<Traits>(params_, tile.work, row());
    wgmma_wait<0>();
    touch(s);
    release_keys(n);
    scores_.apply(params_, s, first_key(n));
    mask.apply(s, first_key(n));
    softmax.template update<BlockKind::kFirst, Element>(s, p_, params_.scale_log2);
    if (has_non_finite_values()) {
      add_and_clear_non_finite(n, num_keys<Traits>(tile.work.rows) - n * kBlockN, kKeys, mask, o);
    }
  }

  /// Blocks n and n - 1. What PV reads may not be written before it is over, so two buffers take
  /// turns.
  EXACTILE_DEVICE void two_steps(int32_t n, const RowMask<Traits>& mask, Output& o,
                                 OnlineSoftmax& softmax) {
    Probabilities p;
    step<BlockKind::kUnmasked, kBlockN>(n, mask, o, softmax, p_, p);
    step<BlockKind::kUnmasked, kBlockN>(n - 1, mask, o, softmax, p, p_);
  }

  template <BlockKind kKind, int kKeysBefore>
  EXACTILE_DEVICE void step(int32_t n, const RowMask<Traits>& mask, Output& o,
                            OnlineSoftmax& softmax) {
    Probabilities p;
    step<kKind, kKeysBefore>(n, mask, o, softmax, p_, p);
#pragma unroll
    for (int i = 0; i < kBlockN / 4; ++i) p_[i] = p[i] | zero_;
  }

  /// QK^T and softmax of block n under PV of block n + 1, which has kKeysBefore keys.
  template <BlockKind kKind, int kKeysBefore>
  EXACTILE_DEVICE void step(int32_t n, const RowMask<Traits>& mask, Output& o,
                            OnlineSoftmax& softmax, const Probabilities& p_before,
                            Probabilities& p) {
    const auto before = stage_;
    stage_.advance();
    wait(shared_.k_full[stage_.index()], stage_);
    float s[kBlockN / 2];
    issue_scores(s);
    softmax.rescale(o);
    wait(shared_.v_full[before.index()], before);
    issue_values<kKeysBefore>(before.index(), p_before, o);
    wgmma_wait<1>();
    touch(s);
    release_keys(n);
    scores_.apply(params_, s, first_key(n));
    if constexpr (kKind == BlockKind::kMasked) mask.apply(s, first_key(n));
    softmax.template update<kKind, Element>(s, p, params_.scale_log2);
    ptx::compute_before_here(softmax.partial_sum());
    wgmma_wait<0>();
    touch(o);
    release_values(before.index());
    if constexpr (kKind == BlockKind::kMasked) {
      if (has_non_finite_values()) add_and_clear_non_finite(n, kBlockN, kBlockN, mask, o);
    }
  }

  template <int kKeys>
  EXACTILE_DEVICE void last_values(Output& o, const OnlineSoftmax& softmax) {
    softmax.rescale(o);
    wait(shared_.v_full[stage_.index()], stage_);
    issue_values<kKeys>(stage_.index(), p_, o);
    wgmma_wait<0>();
    touch(o);
    release_values(stage_.index());
    stage_.advance();
  }

  /// s = Q (M, D) K^T (D, N) as one group.
  template <int kScores>
  EXACTILE_DEVICE void issue_scores(float (&s)[kScores]) {
    constexpr int kPerChunk = Traits::kChunk / 16;
    const ptx::uint32_t q =
        Layout::along_row(ptx::shared_address(&shared_.q[query_])) + Layout::rows(64) * consumer_;
    const ptx::uint32_t k = Layout::along_row(ptx::shared_address(&shared_.k[stage_.index()]));
    make_fresh(s);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Traits::kHeadDim / 16; ++i) {
      const int chunk = i / kPerChunk;
      const int column = Layout::columns(16) * (i % kPerChunk);
      Wgmma<Element, 2 * kScores>::template from_shared<Layout::kUpper>(
          s, q + chunk * Layout::rows(kBlockM) + column, k + chunk * Layout::rows(kBlockN) + column,
          i > 0);
    }
    wgmma_commit();
  }

  /// o += p (M, N) V (N, Dv) as one group.
  template <int kKeys>
  EXACTILE_DEVICE void issue_values(int32_t stage, const Probabilities& p, Output& o) {
    const ptx::uint32_t v = Layout::across_rows(ptx::shared_address(&shared_.v[stage]), kBlockN);
    touch(o);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      Wgmma<Element, Traits::kHeadDimV>::template from_registers<Layout::kUpper>(
          o, p + 4 * i, v + Layout::rows(16) * i);
    }
    wgmma_commit();
  }

  /// Zeroes rows [first_row, end_row) of V, past the sequence's last key: they are its neighbour's,
  /// and 0 x NaN is NaN. Each warpgroup does all of it before it reads V, so that they need not
  /// wait for each other.
  EXACTILE_DEVICE void clear_values(int32_t first_row, int32_t end_row) {
    constexpr int kRowBytes = Layout::kRowBytes;
    constexpr int kWords = kRowBytes / 16;
    const int32_t words = ptx::warp_uniform(end_row - first_row) * kWords;  // of one chunk
    if (words <= 0) return;
    const ptx::uint32_t v = ptx::shared_address(&shared_.v[stage_.index()]) + first_row * kRowBytes;
    wait(shared_.v_full[stage_.index()], stage_);
#pragma unroll 1
    for (int32_t i = threadIdx.x % 128; i < words; i += 128) {
#pragma unroll
      for (int c = 0; c < Traits::kHeadDimV / Traits::kChunk; ++c) {
        ptx::store_shared_zero(v + c * kBlockN * kRowBytes + i * 16);
      }
    }
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(1 + consumer_, 128);
  }

  /// Among the keys of a packed tile are those of its other sequences, where a row's probability is
  /// 0, and 0 x Inf and 0 x NaN are NaN. The same for all consumers.
  EXACTILE_DEVICE bool has_non_finite_values() const {
    if constexpr (Traits::kMask != MaskKind::kPacked) return false;
    if (!packed_) return false;
    // V is loaded when all searchers have released the stage's last block, so the parity of
    // v_checked is unambiguous.
    wait(shared_.v_full[stage_.index()], stage_);
    wait(shared_.v_checked[stage_.index()], stage_);
    int32_t found = 0;
    if (is_leader_) {
#pragma unroll
      for (const bool one : shared_.not_finite[stage_.index()]) found |= one;
    }
    return ptx::warp_uniform(found) != 0;
  }

  /// Adds Inf and NaN of the first `keys` rows to `o` where they are seen, and takes them out of V.
  EXACTILE_DEVICE void add_and_clear_non_finite(int32_t n, int32_t keys, int32_t rows,
                                                const RowMask<Traits>& mask, Output& o) {
    const NonFiniteValues<Traits> v(shared_.v[stage_.index()], rows);
    v.for_each_not_finite(keys, [&](int32_t key, int i, float value) {
      if (mask.sees(i / 2 % 2, n * kBlockN + key)) o[i] += value;
    });
    sync_consumers();  // all have read
    v.clear_not_finite(ptx::thread_now() - 128, 128 * Traits::kConsumers);
    ptx::fence_proxy_async();
    sync_consumers();
  }

  EXACTILE_DEVICE static void sync_consumers() {
    ptx::named_barrier_sync(1 + Traits::kConsumers, 128 * Traits::kConsumers);
  }

  EXACTILE_DEVICE static void clear(Output& o) {
#pragma unroll
    for (float& value : o) value = 0;
  }

  /// Key of this thread's first column in block n.
  EXACTILE_DEVICE static int32_t first_key(int32_t n) {
    return n * kBlockN + static_cast<int32_t>(threadIdx.x) % 4 * 2;
  }

  EXACTILE_DEVICE static void wait(const int64_t& full, Stage<Traits::kStages> stage) {
    ptx::mbarrier_wait(ptx::shared_address(&full), stage.phase());
  }

  /// Every warp says for itself that it is done with a buffer.
  EXACTILE_DEVICE void release(const int64_t& empty) const {
    ptx::mbarrier_arrive_if(is_leader_, ptx::shared_address(&empty));
  }

  /// PV of a block is done. Where others search V, every lane says so, as each may have written to
  /// it (clear_values, add_and_clear_non_finite).
  EXACTILE_DEVICE void release_values(int32_t stage) const {
    ptx::mbarrier_arrive_if(kLanesReleaseV<Traits> == 32 || is_leader_,
                            ptx::shared_address(&shared_.v_empty[stage]));
  }

  /// QK^T of block n is done; with it, if it is the tile's last, Q and the slot. Every thread has
  /// read the slot, so every thread frees it.
  EXACTILE_DEVICE void release_keys(int32_t n) const {
    release(shared_.k_empty[stage_.index()]);
    ptx::mbarrier_arrive_if(n == n_begin_, ptx::shared_address(&shared_.q_empty[query_]));
  }

  const PrefillParams& params_;
  Shared& shared_;
  const int32_t consumer_;
  const bool is_leader_;  // the first lane of a warp arrives for all of it
  const ptx::uint32_t
      zero_;       // always 0, which ptxas cannot see: else it assigns both p the same registers
  int32_t query_;  // index of the tile's buffers
  Stage<Traits::kStages> stage_;
  int32_t n_begin_;
  BlockRange unmasked_;  // blocks that need no mask, except the tile's last
  bool packed_;          // the tile holds several sequences
  Probabilities p_;
  [[no_unique_address]] RowScores<Traits> scores_;
};

}  // namespace exactile::cuda::sm90
