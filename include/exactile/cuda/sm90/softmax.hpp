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

/// Probabilities are relative to a reference per row: the first block's maximum, which rarely stays
/// the row's, but serves as well as long as no block's sum exceeds kLargestSum. So a block is
/// computed without a search for its maximum, and once more, with it as reference, where its sum
/// says so. Every row decides for itself: its result does not depend on the tile it is in.
class OnlineSoftmax {
 public:
  /// A block's scores as probabilities, packed in pairs. rescale() is due before these are summed.
  template <BlockKind kKind, class Element, int kScores>
  EXACTILE_DEVICE void update(const float (&s)[kScores], ptx::uint32_t* p, float scale_log2) {
    float sum[2];
    moved_ = false;
    if constexpr (kKind == BlockKind::kFirst) {
      row_max(s, reference_);
      exponentiate<Element>(s, p, scale_log2, sum);
      sum_[0] = sum[0];
      sum_[1] = sum[1];
      return;
    }
    while (true) {
      exponentiate<Element>(s, p, scale_log2, sum);
      if (moved_ || !__any_sync(~0u, may_exceed(0, sum[0]) || may_exceed(1, sum[1]))) break;
      follow(s, sum, scale_log2);
    }
    sum_[0] += sum[0];
    sum_[1] += sum[1];
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
  EXACTILE_DEVICE float row_sum(int r) const { return sum_of_quad(sum_[r]); }

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

  /// p = 2^((s - reference) scale_log2), and this thread's part of its rows' sums.
  template <class Element, int kScores>
  EXACTILE_DEVICE void exponentiate(const float (&s)[kScores], ptx::uint32_t* p, float scale_log2,
                                    float (&sum)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // A row that has seen no key: -inf - -inf would be NaN.
      const bool none = reference_[r] == -ptx::kInfinity;
      const float offset = none ? 0.0f : -reference_[r] * scale_log2;
      float even = 0, odd = 0;
#pragma unroll
      for (int i = 2 * r; i < kScores; i += 4) {
        const float first = ptx::exp2(fmaf(s[i], scale_log2, offset));
        const float second = ptx::exp2(fmaf(s[i + 1], scale_log2, offset));
        even += first;
        odd += second;
        p[i / 2] = ptx::pack<Element>(first, second);
      }
      sum[r] = even + odd;
    }
  }

  /// Whether row r may have to follow: if so, this is true for a lane of its quad.
  EXACTILE_DEVICE bool may_exceed(int r, float partial_sum) const {
    return partial_sum > kLargestSum / 4 || reference_[r] == -ptx::kInfinity;
  }

  /// Gives the rows that have to follow the block's maximum as reference.
  template <int kScores>
  EXACTILE_DEVICE void follow(const float (&s)[kScores], const float (&sum)[2], float scale_log2) {
    float highest[2];
    row_max(s, highest);
    moved_ = true;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool exceeds = sum_of_quad(sum[r]) > kLargestSum || reference_[r] == -ptx::kInfinity;
      const bool moves = exceeds && highest[r] != -ptx::kInfinity;
      // Exactly 1 where the reference stays: the other rows of a warp change no bit of this one.
      alpha_[r] = moves ? ptx::exp2((reference_[r] - highest[r]) * scale_log2) : 1.0f;
      if (moves) reference_[r] = highest[r];
      sum_[r] *= alpha_[r];
    }
  }

  EXACTILE_DEVICE static float sum_of_quad(float sum) {
    sum += __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
  }

  /// Far above what a block sums up to under its own maximum, far below the largest float16.
  static constexpr float kLargestSum = 1024;

  float reference_[2] = {-ptx::kInfinity, -ptx::kInfinity};  // scores, not yet scaled
  float sum_[2] = {0, 0};
  float alpha_[2];
  bool moved_ = false;  // the same in all lanes of a warp
};

}  // namespace exactile::cuda::sm90
