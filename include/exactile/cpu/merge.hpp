// exactile/cpu/merge.hpp - merges attention results, row by row.
#pragma once

#include <exactile/cpu/row_lanes.hpp>
#include <exactile/merge.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

struct MergeMath {
  EXACTILE_INLINE static float exp(float x) { return __builtin_expf(x); }
  EXACTILE_INLINE static float log(float x) { return __builtin_logf(x); }
};

/// All heads of the tokens from `begin`, before `end`.
template <class Element>
void merge_tokens(const MergeParams& params, int64_t begin, int64_t end) {
  const int64_t whole = params.head_dim_v / kLanes * kLanes;
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < params.num_heads; ++head) {
      const MergedRow<MergeMath> row(params, head, token);
      merge_columns<RowLanes, Element>(params, row, head, token, 0, whole);
      merge_columns<RowTail, Element>(params, row, head, token, whole, params.head_dim_v);
      if (params.lse) params.lse[head * params.total_q + token] = row.lse();
    }
  }
}

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
