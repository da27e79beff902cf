// exactile/merge.hpp - merges attention over disjoint sets of keys by the log-sum-exp of each.
// Shared by host and device.
//
//   lse = log(sum_i exp(lse_i)),  out = sum_i exp(lse_i - lse) * out_i
#pragma once

#include <exactile/platform.hpp>
#include <exactile/tensor.hpp>

namespace exactile {

/// A result over some of the keys.
struct MergePart {
  Tensor<const void*> out;  ///< (total_q, num_heads, head_dim_v)
  const float* lse;         ///< (num_heads, total_q), natural logarithm; -inf: saw no key
  int64_t lse_head_stride, lse_token_stride;  ///< in elements
};

struct MergeParams {
  static constexpr int kInline = 4;

  MergePart first[kInline];
  const MergePart* others;  ///< behind these; where the kernel reads it
  int32_t num_parts;        ///< of both
  int64_t total_q, num_heads, head_dim_v;
  Tensor<void*> out;
  float* lse;  ///< (num_heads, total_q), contiguous, or null

  EXACTILE_HOST_DEVICE const MergePart& part(int32_t i) const {
    return i < kInline ? first[i] : others[i - kInline];
  }
};

/// What the parts weigh in one row. `Math` has exp and log of a float.
///
/// A part that saw no key is never looked at again, so what its row holds does not matter. A
/// log-sum-exp of +inf or NaN makes the row NaN.
template <class Math>
class MergedRow {
 public:
  EXACTILE_HOST_DEVICE MergedRow(const MergeParams& params, int64_t head, int64_t token)
      : params_(params), head_(head), token_(token) {
    for (int32_t i = 0; i < params.num_parts; ++i) {
      if (!sees(i)) continue;
      ++num_seen_;
      last_seen_ = i;
      reference_ = max(reference_, lse_of(i));
    }
    for (int32_t i = 0; i < params.num_parts; ++i) {
      if (sees(i)) sum_ += relative(i);
    }
  }

  EXACTILE_HOST_DEVICE bool sees(int32_t i) const { return lse_of(i) != -kInfinity; }

  /// Of a part that saw a key: exp(lse_i - lse).
  EXACTILE_HOST_DEVICE float weight(int32_t i) const {
    if (is_nan()) return kNan;
    return relative(i) / sum_;
  }

  /// The only part that saw a key: the row is that part's, bit for bit. -1: there is no such part.
  EXACTILE_HOST_DEVICE int32_t only_part() const {
    return num_seen_ == 1 && !is_nan() ? last_seen_ : -1;
  }

  EXACTILE_HOST_DEVICE float lse() const {
    if (num_seen_ == 0) return -kInfinity;
    if (is_nan()) return kNan;
    return num_seen_ == 1 ? reference_ : reference_ + Math::log(sum_);
  }

 private:
  static constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000);
  static constexpr float kNan = __builtin_bit_cast(float, 0x7fc00000);

  EXACTILE_HOST_DEVICE float lse_of(int32_t i) const {
    const MergePart& part = params_.part(i);
    return part.lse[head_ * part.lse_head_stride + token_ * part.lse_token_stride];
  }
  /// exp(lse_i - reference), without the call for the largest.
  EXACTILE_HOST_DEVICE float relative(int32_t i) const {
    const float difference = lse_of(i) - reference_;
    return difference == 0 ? 1.0f : Math::exp(difference);
  }
  EXACTILE_HOST_DEVICE bool is_nan() const { return sum_ != sum_; }

  const MergeParams& params_;
  const int64_t head_, token_;
  int32_t num_seen_ = 0, last_seen_ = -1;
  float reference_ = -kInfinity;  ///< the largest lse
  float sum_ = 0;                 ///< of exp(lse_i - reference_)
};

#if defined(__clang__) || defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define EXACTILE_UNROLL _Pragma("unroll")
#else
#define EXACTILE_UNROLL _Pragma("GCC unroll 8")
#endif

/// A row of a tensor.
template <class Element, class Pointer>
EXACTILE_HOST_DEVICE Element* merge_row(const Tensor<Pointer>& tensor, int64_t head,
                                        int64_t token) {
  return static_cast<Element*>(const_cast<void*>(tensor.data)) + token * tensor.token_stride +
         head * tensor.head_stride;
}

/// Writes columns of one row: those of a worker that begins at `begin`. `Lanes` has Values, what
/// the worker computes with at a time; kStep, the columns from one to its next; load, store, copy
/// and multiply_add. Columns are written after they were read in every part, so `out` may lie
/// exactly where a part does.
template <class Lanes, class Element, class Math>
EXACTILE_HOST_DEVICE void merge_columns(const MergeParams& params, const MergedRow<Math>& row,
                                        int64_t head, int64_t token, int64_t begin, int64_t end) {
  Element* const to = merge_row<Element>(params.out, head, token);
  if (const int32_t only = row.only_part(); only >= 0) {
    const Element* const from = merge_row<Element>(params.part(only).out, head, token);
    for (int64_t c = begin; c < end; c += Lanes::kStep) Lanes::copy(to + c, from + c);
    return;
  }
  constexpr int kAtATime = 8;  // sums in registers
  for (; begin < end; begin += kAtATime * Lanes::kStep) {
    typename Lanes::Values sums[kAtATime] = {};
    for (int32_t i = 0; i < params.num_parts; ++i) {
      if (!row.sees(i)) continue;
      const float weight = row.weight(i);
      const Element* const from = merge_row<Element>(params.part(i).out, head, token);
      EXACTILE_UNROLL
      for (int j = 0; j < kAtATime; ++j) {
        const int64_t c = begin + j * Lanes::kStep;
        if (c < end) sums[j] = Lanes::multiply_add(sums[j], Lanes::load(from + c), weight);
      }
    }
    EXACTILE_UNROLL
    for (int j = 0; j < kAtATime; ++j) {
      const int64_t c = begin + j * Lanes::kStep;
      if (c < end) Lanes::store(to + c, sums[j]);
    }
  }
}

#undef EXACTILE_UNROLL

}  // namespace exactile
