// exactile/scores.hpp - what becomes of a score before the softmax, and what a row's sum begins
// with. Beside the mask (mask.hpp), which says which scores there are. Every backend's kernels.
//
// A score is q k^T before softmax_scale. A variant puts another in its place, of the same unit, so
// the softmax, its references and the LSE do not depend on it. A kernel's Traits name a variant:
//
//   Scores::kChanges                                    change() is not the identity
//   Scores::kHasSinks                                   RowSum may have a sink
//   float slope = Scores::slope(params, token, head)    what change() has to know of a row
//   s = Scores::change<Math>(params, s, slope, distance)
//   RowSum<Scores, Math> sum(...)                       a row's end
//
// Math has the backend's tanh(), exp2() and lse(). Values are floats, or vectors of them on the
// CPU.
#pragma once

#include <exactile/platform.hpp>

namespace exactile {

inline constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000);

/// Parameters of the variants; all off by default.
struct ScoreParams {
  float softcap = 0;  ///< over softmax_scale; 0: none
  float softcap_inverse = 0;
  float scale_inverse = 0;              ///< 1 / softmax_scale
  int32_t batch = 0;                    ///< of alibi_slopes; 1: the same for all sequences
  const float* alibi_slopes = nullptr;  ///< (batch, num_heads_q), or null
  int64_t alibi_batch_stride = 0;       ///< in elements
  const int32_t* cu_seqlens_q = nullptr;
  const float* sinks = nullptr;  ///< (num_heads_q,): logits, of the scaled scores' unit, or null

  /// Whether GeneralScores::change() is more than the identity.
  EXACTILE_HOST_DEVICE constexpr bool change() const { return softcap > 0 || alibi_slopes; }
};

/// The sequence that a token belongs to; sequences may be empty.
EXACTILE_HOST_DEVICE constexpr int32_t sequence_of(const int32_t* cu_seqlens, int32_t batch,
                                                   int32_t token) {
  int32_t first = 0, last = batch - 1;
  while (first < last) {
    const int32_t middle = (first + last) / 2;
    if (cu_seqlens[middle + 1] <= token) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return first;
}

/// A score is what q k^T says, and a row's sum begins with nothing.
struct PlainScores {
  static constexpr bool kChanges = false;
  static constexpr bool kHasSinks = false;
};

/// Attention sinks alone: GeneralScores without what changes a score, so no slower than none.
struct SinkScores {
  static constexpr bool kChanges = false;
  static constexpr bool kHasSinks = true;
};

/// Soft capping (arXiv:2408.00118), then ALiBi (arXiv:2108.12409), and attention sinks
/// (arXiv:2309.17453 as learned logits): each where its parameter is there.
struct GeneralScores {
  static constexpr bool kChanges = true;
  static constexpr bool kHasSinks = true;

  /// Of ALiBi: what is added to a raw score for each key of distance, <= 0.
  EXACTILE_HOST_DEVICE static float slope(const ScoreParams& params, int32_t token, int32_t head) {
    if (!params.alibi_slopes) return 0;
    const int32_t b = params.batch > 1 ? sequence_of(params.cu_seqlens_q, params.batch, token) : 0;
    return -params.alibi_slopes[b * params.alibi_batch_stride + head] * params.scale_inverse;
  }

  /// distance: of the key from the row's own position, |i + (len_k - len_q) - j|.
  template <class Math, class Value>
  EXACTILE_HOST_DEVICE static Value change(const ScoreParams& params, Value s, Value slope,
                                           Value distance) {
    if (params.softcap > 0) s = params.softcap * Math::tanh(s * params.softcap_inverse);
    if (params.alibi_slopes) s = s + slope * distance;
    return s;
  }
};

/// The sum of a row's exponentials, which are relative to 2^(reference * scale_log2). A row that
/// saw no key has reference -inf and sum 0.
template <class Scores, class Math>
class RowSum {
 public:
  /// head_of_row(): its query head, where that matters.
  template <class HeadOfRow>
  EXACTILE_HOST_DEVICE RowSum(const ScoreParams&, float sum, float, float, HeadOfRow) : sum_(sum) {}

  EXACTILE_HOST_DEVICE float total() const { return sum_; }
  /// Natural logarithm of the total.
  EXACTILE_HOST_DEVICE float lse(float reference, float scale_log2) const {
    return Math::lse(reference, scale_log2, sum_);
  }

 private:
  const float sum_;
};

/// With the sink of its head. Where that is all that counts, the total is infinite.
template <class Scores, class Math>
  requires(Scores::kHasSinks)
class RowSum<Scores, Math> {
 public:
  template <class HeadOfRow>
  EXACTILE_HOST_DEVICE RowSum(const ScoreParams& params, float sum, float reference,
                              float scale_log2, HeadOfRow head_of_row)
      : sum_(sum), sink_(params.sinks ? params.sinks[head_of_row()] : -kInfinity), total_(sum) {
    constexpr float kLog2E = 1.44269504088896341f;
    if (sink_ != -kInfinity) total_ += Math::exp2(sink_ * kLog2E - reference * scale_log2);
  }

  EXACTILE_HOST_DEVICE float total() const { return total_; }
  EXACTILE_HOST_DEVICE float lse(float reference, float scale_log2) const {
    const bool only_sink = total_ == kInfinity && sum_ < kInfinity;
    return only_sink ? sink_ : Math::lse(reference, scale_log2, total_);
  }

 private:
  float sum_, sink_, total_;
};

}  // namespace exactile
