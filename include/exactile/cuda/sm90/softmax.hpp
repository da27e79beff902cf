// exactile/cuda/sm90/softmax.hpp - online softmax (arXiv:2205.14135 Alg. 1) over the two rows that
// a thread holds a quarter of.
#pragma once

#include <exactile/cuda/ptx.hpp>

namespace exactile::cuda::sm90 {

/// A key block within its tile.
enum class BlockKind : unsigned char {
  kFirst,     ///< the first visited
  kMasked,    ///< some row does not see all of it
  kUnmasked,  ///< any other: no mask
};

/// Probabilities are relative to a reference per row: the first block's maximum, which rarely stays
/// the row's, but serves as well as long as no block's sum exceeds kLargestSum. So a block is
/// computed without a search for its maximum, and once more, with it as reference, where its sum
/// says so. Every row decides for itself: its result does not depend on the tile it is in.
///
/// (s - reference) * scale is computed as s * scale - offset. Of a row whose offset is so large
/// that its rounding would show, and of one that has seen no key, it is kNoOffset: a block that the
/// row sees nothing of sums up to 0 then, any other to infinity, and is computed once more, with
/// the reference, now always the maximum so far, subtracted first.
class OnlineSoftmax {
 public:
  /// A block's scores as probabilities, packed in pairs. rescale() is due before these are summed.
  template <BlockKind kKind, class Element, int kScores>
  EXACTILE_DEVICE void update(float (&s)[kScores], ptx::uint32_t* p, float scale_log2) {
    float sum[2];
    moved_ = false;
    if constexpr (kKind == BlockKind::kFirst) {
      row_max(s, reference_);
      float offset[2] = {offset_of(0, scale_log2), offset_of(1, scale_log2)};
      subtract_references(s, offset);
      exponentiate<Element>(s, p, scale_log2, offset, sum);
      sum_[0] = sum[0];
      sum_[1] = sum[1];
      return;
    }
    float offset[2] = {offset_of(0, scale_log2), offset_of(1, scale_log2)};
    while (true) {
      exponentiate<Element>(s, p, scale_log2, offset, sum);
      if (moved_ || !__any_sync(~0u, may_exceed(sum[0]) || may_exceed(sum[1]))) break;
      follow(s, sum, scale_log2, offset);
    }
    sum_[0] += sum[0];
    sum_[1] += sum[1];
  }

  /// Rescales earlier sums to the reference of the last update().
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

  /// p = 2^(s * scale_log2 - offset), and this thread's part of its rows' sums.
  template <class Element, int kScores>
  EXACTILE_DEVICE static void exponentiate(const float (&s)[kScores], ptx::uint32_t* p,
                                           float scale_log2, const float (&offset)[2],
                                           float (&sum)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float even = 0, odd = 0;
#pragma unroll
      for (int i = 2 * r; i < kScores; i += 4) {
        const float first = ptx::exp2(fmaf(s[i], scale_log2, -offset[r]));
        const float second = ptx::exp2(fmaf(s[i + 1], scale_log2, -offset[r]));
        even += first;
        odd += second;
        p[i / 2] = ptx::pack<Element>(first, second);
      }
      sum[r] = even + odd;
    }
  }

  /// Of row r.
  EXACTILE_DEVICE float offset_of(int r, float scale_log2) const {
    const float offset = reference_[r] * scale_log2;
    return fabsf(offset) < kLargeOffset ? offset : kNoOffset;
  }

  /// Whether the reference of a row may have to change: true for one lane of its quad.
  EXACTILE_DEVICE static bool may_exceed(float partial_sum) {
    return partial_sum > kLargestSum / 4;
  }

  /// Sets the reference of such rows to the block's maximum.
  template <int kScores>
  EXACTILE_DEVICE void follow(float (&s)[kScores], const float (&sum)[2], float scale_log2,
                              float (&offset)[2]) {
    float highest[2];
    row_max(s, highest);
    moved_ = true;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool exceeds = sum_of_quad(sum[r]) > kLargestSum;
      const bool moves = (exceeds || offset[r] == kNoOffset) && highest[r] > reference_[r];
      // Exactly 1 where the reference stays: the other rows of a warp change no bit of this one.
      alpha_[r] = moves ? ptx::exp2((reference_[r] - highest[r]) * scale_log2) : 1.0f;
      if (moves) reference_[r] = highest[r];
      sum_[r] *= alpha_[r];
      offset[r] = offset_of(r, scale_log2);
    }
    subtract_references(s, offset);
  }

  /// From the scores of those of the rows that have keys and no offset.
  template <int kScores>
  EXACTILE_DEVICE void subtract_references(float (&s)[kScores], float (&offset)[2]) const {
    bool large[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      large[r] = offset[r] == kNoOffset && reference_[r] != -kInfinity;
    }
    if (!__any_sync(~0u, large[0] || large[1])) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float subtracted = large[r] ? reference_[r] : 0.0f;
      if (large[r]) offset[r] = 0;
#pragma unroll
      for (int i = 2 * r; i < kScores; i += 4) {
        s[i] -= subtracted;
        s[i + 1] -= subtracted;
      }
    }
  }

  EXACTILE_DEVICE static float sum_of_quad(float sum) {
    sum += __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
  }

  /// Far above what a block sums up to under its own maximum, far below the largest float16.
  static constexpr float kLargestSum = 1024;

  /// Rounded to 2^-11: an error of 2^-12 in every probability, as float16 makes it.
  static constexpr float kLargeOffset = 8192;

  /// exp2(s * scale - kNoOffset) is +inf for every s but -inf.
  static constexpr float kNoOffset = -3.0e38f;

  float reference_[2] = {-kInfinity, -kInfinity};  // scores, not yet scaled
  float sum_[2] = {0, 0};
  float alpha_[2];
  bool moved_ = false;  // the same in all lanes of a warp
};

}  // namespace exactile::cuda::sm90
