// exactile/cuda/sm80/mainloop.hpp - one query tile against its keys: QK^T, mask, online softmax, PV
// (arXiv:2205.14135 Alg. 1) with mma.sync, cp.async and ldmatrix.
//
// Letters: M rows of the tile, N keys of a block, D head_dim, Dv head_dim_v. Every warp owns 16
// rows whole; of those a lane holds the rows g = lane / 4 and g + 8, and of 8 columns 2t and 2t + 1
// with t = lane % 4.
//   q  (M, D)           shared
//   k  (stage, N, D)    shared
//   v  (stage, N, Dv)   shared
//   s  (16, N)          registers: scores, then probabilities
//   o  (16, Dv)         registers, not yet divided by the row sum
// Key blocks start at multiples of kBlockN from the sequence's first key whatever the tile, so a
// row's result does not depend on the tile that it is in.
#pragma once

#include <exactile/cuda/ptx80.hpp>
#include <exactile/cuda/sm80/traits.hpp>
#include <exactile/tile_rows.hpp>

namespace exactile::cuda::sm80 {

using ptx::uint32_t;

EXACTILE_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
EXACTILE_DEVICE int warp() { return static_cast<int>(threadIdx.x) / 32; }
EXACTILE_DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }

/// A tile of 16-bit elements in shared memory, row after row in chunks of 16 bytes. Chunks of a row
/// are permuted among kGroup neighbours, so that one column of 8 consecutive rows, which is what
/// ldmatrix reads at a time, lies in 8 different groups of 4 banks.
template <int kColumns>
struct SharedTile {
  static constexpr int kChunks = kColumns / 8;
  static constexpr int kPitch = kColumns * 2;  // bytes
  // A pitch of 96 elements alternates between two halves of the banks by itself.
  static constexpr int kGroup = kChunks % 8 == 0 ? 8 : 4;
  static_assert(kChunks % 8 == 0 || kChunks % 8 == 4);

  uint32_t base;

  EXACTILE_DEVICE static int permutation(int row) { return kGroup == 8 ? row % 8 : row / 2 % 4; }

  EXACTILE_DEVICE uint32_t address(int row, int chunk) const {
    return base + row * kPitch + ((chunk ^ permutation(row)) * 16);
  }

  /// address(row + 16 * i, 2 * pair + odd) for constant i and pair costs one instruction.
  struct Cursor {
    uint32_t row;
    uint32_t chunk;
    EXACTILE_DEVICE uint32_t at(int i, int pair) const {
      constexpr int kPairs = kGroup / 2;
      return row + i * 16 * kPitch + pair / kPairs * kGroup * 16 + (chunk ^ (pair % kPairs * 32));
    }
  };
  EXACTILE_DEVICE Cursor cursor(int row, int odd) const {
    return {base + row * kPitch, static_cast<uint32_t>((odd ^ permutation(row)) * 16)};
  }
};

/// State of a warp's 16 rows; index 0 is row g, 1 is row g + 8.
template <class Traits>
struct Accumulators {
  float o[Traits::kHeadDimV / 8][4];  // (16, Dv)
  float row_max[2];                   // the reference of the exponentials, raw scores
  float row_sum[2];                   // this lane's columns only

  EXACTILE_DEVICE Accumulators() : row_max{-kInfinity, -kInfinity}, row_sum{} {
#pragma unroll
    for (auto& fragment : o) {
#pragma unroll
      for (float& x : fragment) x = 0;
    }
  }
};

template <class Traits>
class Mainloop {
  using Element = typename Traits::Element;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kStages = Traits::kStages;
  using TileQ = SharedTile<Traits::kHeadDim>;
  using TileV = SharedTile<Traits::kHeadDimV>;
  using Scores = float[kBlockN / 8][4];  // (16, N)
  using KvRows = typename Traits::KvLayout::template Rows<Element>;

 public:
  EXACTILE_DEVICE Mainloop(const PrefillParams& params, const TileRows& tile,
                           const typename Traits::Keys& keys, uint32_t shared)
      : params_(params),
        tile_(tile),
        shared_(shared),
        k_(params.k, params.pages, tile.record.k_begin, tile.kv_head),
        v_(params.v, params.pages, tile.record.k_begin, tile.kv_head) {
    const int32_t first = tile.record.q_end - tile.record.q_begin;
    const int32_t last = first - tile.tokens + 1;
    const int32_t k_len = tile.record.k_len;
    // blocks_with() and blocks_within() written out: else ptxas makes a slower main loop (0.987).
    const KeyRange any = mask().any_visible(first, last, k_len);
    const KeyRange all = mask().all_visible(first, last, k_len);
    begin_ = any.begin / kBlockN;
    end_ = any.empty() ? begin_ : ceil_div(any.end, kBlockN);
    if constexpr (Traits::Keys::kSplits) {
      const BlockRange part = keys.within({begin_, end_}, kBlockN);
      begin_ = part.begin;
      end_ = part.end;
    }
    unmasked_begin_ = min(max(ceil_div(all.begin, kBlockN), begin_), end_);
    unmasked_end_ = min(max(all.end / kBlockN, unmasked_begin_), end_);
  }

  /// Accumulates the tile's rows over the keys that they see. Rows past the tile's last are
  /// computed from zeros.
  ///
  /// Copies run ahead of the arithmetic in half blocks K, V, K, V, ... one group each: 2 * kStages
  /// are held, and the one used last is overwritten while the next is used.
  EXACTILE_DEVICE void run(Accumulators<Traits>& acc) {
    if (begin_ == end_) return;
    load_queries();
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      if (i > 0) load_values(begin_ + i - 1);
      load_keys(begin_ + i);
    }
    int32_t n = begin_;
    if constexpr (Traits::kMask != MaskKind::kFull) {
      for (; n < unmasked_begin_; ++n) attend<true>(n, acc);
    }
    for (; n < unmasked_end_; ++n) attend<false>(n, acc);
    for (; n < end_; ++n) attend<true>(n, acc);
  }

 private:
  EXACTILE_DEVICE Mask mask() const {
    return Traits::kMask == MaskKind::kFull ? Mask{} : params_.mask;
  }

  // ---- copies

  EXACTILE_DEVICE TileQ queries() const { return {shared_}; }  // (M, D)
  EXACTILE_DEVICE TileQ keys(int32_t n) const {                // (N, D)
    return {shared_ + Traits::kBytesQ + n % kStages * Traits::kBytesK};
  }
  EXACTILE_DEVICE TileV values(int32_t n) const {  // (N, Dv)
    return {shared_ + Traits::kBytesQ + kStages * Traits::kBytesK + n % kStages * Traits::kBytesV};
  }

  /// Joins the group of the first keys.
  EXACTILE_DEVICE void load_queries() const {
    const auto* const q = static_cast<const Element*>(params_.q.data);
    load_rows<Traits::kBlockM>(queries(), tile_.rows(),
                               [&](int row) { return q + tile_.offset(params_.q, row); });
  }

  EXACTILE_DEVICE void load_keys(int32_t n) const {
    if (n < end_) load_block(k_, n * kBlockN, keys(n));
    ptx::commit_copies();
  }
  EXACTILE_DEVICE void load_values(int32_t n) const {
    if (n < end_) load_block(v_, n * kBlockN, values(n));
    ptx::commit_copies();
  }

  /// Rows past the sequence's end become 0: a probability of 0 times a neighbour's NaN is NaN.
  template <class Tile>
  EXACTILE_DEVICE void load_block(const KvRows& from, int32_t n0, Tile to) const {
    load_rows<kBlockN>(to, tile_.record.k_len - n0, [&](int row) { return from[n0 + row]; });
  }

  /// Rows [0, num_rows) from where row_at(row) says, 0 after them. A thread copies the same chunk
  /// of every group of every kStep'th row: one address in shared memory, and constants.
  template <int kRows, class Tile, class RowAt>
  EXACTILE_DEVICE static void load_rows(Tile to, int32_t num_rows, RowAt row_at) {
    constexpr int kStep = Traits::kThreads / Tile::kGroup;
    static_assert(kRows % kStep == 0 && kStep % 8 == 0);
    const int row0 = thread() / Tile::kGroup;
    const int chunk0 = thread() % Tile::kGroup;
    const uint32_t address0 = to.address(row0, chunk0);
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      const int row = row0 + i * kStep;
      const bool exists = row < num_rows;
      const Element* const from = row_at(exists ? row : 0);
#pragma unroll
      for (int j = 0; j < Tile::kChunks; j += Tile::kGroup) {
        ptx::copy_async(address0 + i * kStep * Tile::kPitch + j * 16, from + (chunk0 + j) * 8,
                        exists);
      }
    }
  }

  /// The oldest half block that is under way has come, and all warps are done with the one before.
  EXACTILE_DEVICE static void next_half() {
    ptx::wait_for_copies<2 * kStages - 2>();
    __syncthreads();
  }

  // ---- arithmetic

  template <bool kMasked>
  EXACTILE_DEVICE void attend(int32_t n, Accumulators<Traits>& acc) const {
    next_half();
    load_values(n + kStages - 1);
    Scores s;
    scores(n, s);
    if constexpr (Traits::Scores::kChanges) change(n, s);
    if constexpr (kMasked) apply_mask(n, s);
    softmax(s, acc);
    next_half();
    load_keys(n + kStages);
    add_values(n, s, acc.o);
  }

  /// s = q k^T.
  EXACTILE_DEVICE void scores(int32_t n, Scores& s) const {
#pragma unroll
    for (auto& fragment : s) {
#pragma unroll
      for (float& x : fragment) x = 0;
    }
    const auto q_at = queries().cursor(warp() * Traits::kWarpRows + lane() % 16, lane() / 16);
    const auto k_at = keys(n).cursor(lane() % 16, lane() / 16);
#pragma unroll
    for (int d = 0; d < Traits::kHeadDim / 16; ++d) {
      uint32_t q[4];  // (16, 16 of D)
      ptx::load_matrices(q, q_at.at(0, d));
#pragma unroll
      for (int i = 0; i < kBlockN / 16; ++i) {
        uint32_t k[4];  // (16 of N, 16 of D)
        ptx::load_matrices(k, k_at.at(i, d));
        ptx::mma<Element>(s[2 * i], q, k[0], k[2]);
        ptx::mma<Element>(s[2 * i + 1], q, k[1], k[3]);
      }
    }
  }

  /// Slopes are loaded anew for every block: registers are full.
  EXACTILE_DEVICE void change(int32_t n, Scores& s) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(warp() * Traits::kWarpRows + lane() / 4 + r * 8, tile_.rows() - 1);
      const float slope = Traits::Scores::slope(params_.scores, tile_.token(row), tile_.head(row));
      const int32_t position = tile_.position(row);
      const auto first = static_cast<float>(n * kBlockN + lane() % 4 * 2 - position);
#pragma unroll
      for (int i = 0; i < kBlockN / 4; ++i) {
        float& score = s[i / 2][r * 2 + i % 2];
        const float distance = fabsf(first + static_cast<float>(i / 2 * 8 + i % 2));
        score = Traits::Scores::template change<ptx::Math>(params_.scores, score, slope, distance);
      }
    }
  }

  EXACTILE_DEVICE void apply_mask(int32_t n, Scores& s) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp() * Traits::kWarpRows + lane() / 4 + r * 8;
      const KeyRange keys = mask().visible(tile_.rows_to_end(row), tile_.record.k_len);
#pragma unroll
      for (int i = 0; i < kBlockN / 4; ++i) {
        const int32_t key = n * kBlockN + i / 2 * 8 + lane() % 4 * 2 + i % 2;
        if (key < keys.begin || key >= keys.end) s[i / 2][r * 2 + i % 2] = -kInfinity;
      }
    }
  }

  /// Turns scores into probabilities relative to the row's reference. That follows the maximum only
  /// when it has grown by more than a factor of 2^8, so that nothing has to be rescaled mostly and
  /// no probability exceeds 2^8. -inf - -inf never happens: a row without a key has offset 0.
  EXACTILE_DEVICE void softmax(Scores& s, Accumulators<Traits>& acc) const {
    const float scale = params_.scale_log2;
    float alpha[2];
    bool moves[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = -kInfinity;
#pragma unroll
      for (auto& x : s) highest = fmaxf(highest, fmaxf(x[2 * r], x[2 * r + 1]));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, 2));
      const float before = acc.row_max[r];
      moves[r] = (highest - before) * scale > 8.0f;
      const float now = moves[r] ? highest : before;
      // Exactly 1 where the reference stays: a block that a row does not see changes no bit of it.
      alpha[r] = moves[r] ? ptx::exp2((before - now) * scale) : 1.0f;
      acc.row_max[r] = now;
      // Where the rounding of an offset would show, the reference is subtracted first.
      constexpr float kLargeOffset = 8192;
      const bool large = fabsf(now * scale) >= kLargeOffset;
      const float offset = large ? 0.0f : now * scale;
      if (large && now > -kInfinity) {
#pragma unroll
        for (auto& x : s) {
          x[2 * r] -= now;
          x[2 * r + 1] -= now;
        }
      }
      float sum = 0;
#pragma unroll
      for (auto& x : s) {
        x[2 * r] = ptx::exp2(x[2 * r] * scale - offset);
        x[2 * r + 1] = ptx::exp2(x[2 * r + 1] * scale - offset);
        sum += x[2 * r] + x[2 * r + 1];
      }
      acc.row_sum[r] = acc.row_sum[r] * alpha[r] + sum;
    }
    if (__any_sync(~0u, moves[0] || moves[1])) {
#pragma unroll
      for (auto& x : acc.o) {
#pragma unroll
        for (int c = 0; c < 4; ++c) x[c] *= alpha[c / 2];
      }
    }
  }

  /// o += p v. The columns 2t, 2t + 1 of two score fragments are those of an A fragment.
  EXACTILE_DEVICE void add_values(int32_t n, const Scores& p,
                                  float (&o)[Traits::kHeadDimV / 8][4]) const {
    const auto v_at = values(n).cursor(lane() % 16, lane() / 16);
#pragma unroll
    for (int i = 0; i < kBlockN / 16; ++i) {
      const uint32_t a[4] = {
          ptx::pack<Element>(p[2 * i][0], p[2 * i][1]),
          ptx::pack<Element>(p[2 * i][2], p[2 * i][3]),
          ptx::pack<Element>(p[2 * i + 1][0], p[2 * i + 1][1]),
          ptx::pack<Element>(p[2 * i + 1][2], p[2 * i + 1][3])};  // (16, 16 of N)
#pragma unroll
      for (int d = 0; d < Traits::kHeadDimV / 16; ++d) {
        uint32_t v[4];  // (16 of N, 16 of Dv)
        ptx::load_matrices_transposed(v, v_at.at(i, d));
        ptx::mma<Element>(o[2 * d], a, v[0], v[1]);
        ptx::mma<Element>(o[2 * d + 1], a, v[2], v[3]);
      }
    }
  }

  const PrefillParams& params_;
  const TileRows& tile_;
  const uint32_t shared_;
  const KvRows k_, v_;                     // of the tile's sequence and kv head
  int32_t begin_, end_;                    // blocks that some row sees
  int32_t unmasked_begin_, unmasked_end_;  // blocks that all rows see whole
};

}  // namespace exactile::cuda::sm80
