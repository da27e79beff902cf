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
///
/// (s - reference) * scale is computed as s * scale - offset. Of a row whose offset is large enough
/// for its rounding to show, the reference is subtracted first, and is always the maximum so far.
class OnlineSoftmax {
 public:
  /// A block's scores as probabilities, packed in pairs. rescale() is due before these are summed.
  template <BlockKind kKind, class Element, int kScores>
  EXACTILE_DEVICE void update(float (&s)[kScores], ptx::uint32_t* p, float scale_log2) {
    float sum[2];
    moved_ = false;
    if constexpr (kKind == BlockKind::kFirst) {
      row_max(s, reference_);
      if (find_large(scale_log2)) subtract_references(s, scale_log2, true, true);
      exponentiate<Element>(s, p, scale_log2, sum);
      sum_[0] = sum[0];
      sum_[1] = sum[1];
      return;
    }
    if (large_) follow_large(s, scale_log2);
    for (bool followed = false;; followed = true) {
      exponentiate<Element>(s, p, scale_log2, sum);
      if (followed || !__any_sync(~0u, may_exceed(0, sum[0]) || may_exceed(1, sum[1]))) break;
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
      // Large ones are subtracted already. Nor is that of a row that has seen no key: -inf - -inf
      // would be NaN.
      const float product = reference_[r] * scale_log2;
      const float offset = fabsf(product) >= kLargeOffset ? 0.0f : -product;
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
  EXACTILE_DEVICE void follow(float (&s)[kScores], const float (&sum)[2], float scale_log2) {
    float highest[2];
    row_max(s, highest);
    bool moves[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool exceeds = sum_of_quad(sum[r]) > kLargestSum || reference_[r] == -ptx::kInfinity;
      moves[r] = exceeds && highest[r] != -ptx::kInfinity;
      move_if(moves[r], r, highest[r], scale_log2);
    }
    moved_ = true;
    if (find_large(scale_log2)) subtract_references(s, scale_log2, moves[0], moves[1]);
  }

  /// Before a block's scores become probabilities, where some row of the warp has a large offset.
  template <int kScores>
  EXACTILE_DEVICE void follow_large(float (&s)[kScores], float scale_log2) {
    float highest[2];
    row_max(s, highest);
    bool large[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      large[r] = is_large(r, scale_log2);
      move_if(large[r] && highest[r] > reference_[r], r, highest[r], scale_log2);
    }
    moved_ = true;
    find_large(scale_log2);
    subtract_references(s, scale_log2, large[0], large[1]);
  }

  /// The factor is exactly 1 where the reference stays: the other rows of a warp change no bit of
  /// this one.
  EXACTILE_DEVICE void move_if(bool moves, int r, float to, float scale_log2) {
    const float factor = moves ? ptx::exp2((reference_[r] - to) * scale_log2) : 1.0f;
    if (moves) reference_[r] = to;
    sum_[r] *= factor;
    alpha_[r] = moved_ ? alpha_[r] * factor : factor;
  }

  EXACTILE_DEVICE bool is_large(int r, float scale_log2) const {
    return fabsf(reference_[r] * scale_log2) >= kLargeOffset && reference_[r] != -ptx::kInfinity;
  }

  /// Whether some row of the warp has a large offset.
  EXACTILE_DEVICE bool find_large(float scale_log2) {
    large_ = __any_sync(~0u, is_large(0, scale_log2) || is_large(1, scale_log2));
    return large_;
  }

  /// From the scores of those of the rows that have a large offset.
  template <int kScores>
  EXACTILE_DEVICE void subtract_references(float (&s)[kScores], float scale_log2, bool first,
                                           bool second) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float reference =
          (r == 0 ? first : second) && is_large(r, scale_log2) ? reference_[r] : 0.0f;
#pragma unroll
      for (int i = 2 * r; i < kScores; i += 4) {
        s[i] -= reference;
        s[i + 1] -= reference;
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

  float reference_[2] = {-ptx::kInfinity, -ptx::kInfinity};  // scores, not yet scaled
  float sum_[2] = {0, 0};
  float alpha_[2];
  bool moved_ = false;  // the same in all lanes of a warp
  bool large_;          // likewise: an offset is large
};

}  // namespace exactile::cuda::sm90
