// exactile/cpu/merge.hpp - merges attention results, row by row.
#pragma once

#include <exactile/cpu/simd.hpp>
#include <exactile/merge.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

struct MergeMath {
  EXACTILE_INLINE static float exp(float x) { return __builtin_expf(x); }
  EXACTILE_INLINE static float log(float x) { return __builtin_logf(x); }
};

/// kLanes columns at a time.
struct MergeLanes {
  using Values = Floats;
  static constexpr int kStep = kLanes;
  template <class Element>
  EXACTILE_INLINE static Floats load(const Element* p) {
    return to_floats(p);
  }
  template <class Element>
  EXACTILE_INLINE static void store(Element* p, Floats x) {
    from_floats(p, x);
  }
  template <class Element>
  EXACTILE_INLINE static void copy(Element* to, const Element* from) {
    __builtin_memmove(to, from, kStep * sizeof *to);
  }
  EXACTILE_INLINE static Floats multiply_add(Floats sum, Floats x, float weight) {
    return cpu::multiply_add(sum, x, weight);
  }
};

/// One at a time, for what a row has behind its last kLanes.
struct MergeTail {
  using Values = float;
  static constexpr int kStep = 1;
  template <class Element>
  EXACTILE_INLINE static float load(const Element* p) {
    return to_float(*p);
  }
  template <class Element>
  EXACTILE_INLINE static void store(Element* p, float x) {
    Element rounded[kLanes];
    from_floats(rounded, splat(x));
    *p = rounded[0];
  }
  template <class Element>
  EXACTILE_INLINE static void copy(Element* to, const Element* from) {
    *to = *from;
  }
  EXACTILE_INLINE static float multiply_add(float sum, float x, float weight) {
    return cpu::multiply_add(splat(sum), splat(x), weight)[0];
  }
};

/// All heads of the tokens from `begin`, before `end`.
template <class Element>
void merge_tokens(const MergeParams& params, int64_t begin, int64_t end) {
  const int64_t whole = params.head_dim_v / kLanes * kLanes;
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < params.num_heads; ++head) {
      const MergedRow<MergeMath> row(params, head, token);
      merge_columns<MergeLanes, Element>(params, row, head, token, 0, whole);
      merge_columns<MergeTail, Element>(params, row, head, token, whole, params.head_dim_v);
      if (params.lse) params.lse[head * params.total_q + token] = row.lse();
    }
  }
}

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
