// exactile/cuda/sm90/softmax.hpp - online softmax (arXiv:2205.14135 Alg. 1) over the two rows that
// a thread holds a quarter of.
#pragma once

#include <exactile/cuda/ptx.hpp>

namespace exactile::cuda::sm90 {

/// Where a block stands among those of its tile.
enum class BlockKind : unsigned char {
  kFirst,   ///< the first visited
  kMasked,  ///< some row does not see all of it
  kSteady,  ///< any other: no mask
};

/// Scores are kept relative to a reference per row. It follows the row's maximum only when that has
/// grown by more than a factor of 2^8, so that sums rarely have to be rescaled and no probability
/// exceeds 2^8. Every row decides for itself: its result does not depend on the tile it is in.
class OnlineSoftmax {
 public:
  /// Turns a block's scores into probabilities. rescale() is due before these are summed.
  template <BlockKind kKind, int kScores>
  EXACTILE_DEVICE void update(float (&s)[kScores], float scale_log2) {
    float highest[2];
    row_max(s, highest);
    if constexpr (kKind == BlockKind::kFirst) {
      reference_[0] = highest[0];
      reference_[1] = highest[1];
    } else {
      follow(highest, scale_log2);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // A row that has seen no key: -inf - -inf would be NaN.
      const bool none = reference_[r] == -ptx::kInfinity;
      const float offset = none ? 0.0f : -reference_[r] * scale_log2;
      float even = 0, odd = 0;
#pragma unroll
      for (int i = 2 * r; i < kScores; i += 4) {
        s[i] = ptx::exp2(fmaf(s[i], scale_log2, offset));
        s[i + 1] = ptx::exp2(fmaf(s[i + 1], scale_log2, offset));
        even += s[i];
        odd += s[i + 1];
      }
      sum_[r] += even + odd;
    }
  }

  /// Brings what was summed before the last update() to its reference.
  template <int kCount>
  EXACTILE_DEVICE void rescale(float (&o)[kCount]) const {
    if (!moved_) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) o[i] *= alpha_[i / 2 % 2];
  }

  /// This thread's part of its rows' sums, in both at once: not negative.
  EXACTILE_DEVICE float partial_sum() const { return sum_[0] + sum_[1]; }

  /// Sum of row r; the lanes of a quad call it together.
  EXACTILE_DEVICE float row_sum(int r) const {
    float sum = sum_[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
  }

  EXACTILE_DEVICE float reference(int r) const { return reference_[r]; }

 private:
  template <int kScores>
  EXACTILE_DEVICE static void row_max(const float (&s)[kScores], float (&highest)[2]) {
    float chain[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
    for (int i = 4; i < kScores; ++i) chain[i % 4] = fmaxf(chain[i % 4], s[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) highest[r] = fmaxf(chain[2 * r], chain[2 * r + 1]);
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        highest[r] = fmaxf(highest[r], __shfl_xor_sync(~0u, highest[r], lanes));
      }
    }
  }

  EXACTILE_DEVICE void follow(const float (&highest)[2], float scale_log2) {
    bool moves[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      moves[r] = (highest[r] - reference_[r]) * scale_log2 > 8.0f;  // false: -inf - -inf
    }
    moved_ = __any_sync(~0u, moves[0] || moves[1]);
    if (!moved_) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Exactly 1 where the reference stays: the other rows of a warp change no bit of this one.
      alpha_[r] = moves[r] ? ptx::exp2((reference_[r] - highest[r]) * scale_log2) : 1.0f;
      if (moves[r]) reference_[r] = highest[r];
      sum_[r] *= alpha_[r];
    }
  }

  float reference_[2] = {-ptx::kInfinity, -ptx::kInfinity};  // scores, not yet scaled
  float sum_[2] = {0, 0};
  float alpha_[2];
  bool moved_ = false;  // the same in all lanes of a warp
};

}  // namespace exactile::cuda::sm90
