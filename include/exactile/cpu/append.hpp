// exactile/cpu/append.hpp - writes new rows of K and V into pages.
#pragma once

#include <exactile/append.hpp>
#include <exactile/cpu/row_lanes.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

/// The tokens from `begin`, before `end`.
template <class From, class To>
void append_tokens(const AppendParams& params, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const int64_t slot = params.slot(token);
    if (slot < 0) continue;
    const int64_t page = slot / params.page_size, row = slot % params.page_size;
    const AppendTensor* const tensors[] = {&params.k, &params.v};
    for (const AppendTensor* const tensor : tensors) {
      const int64_t whole = tensor->head_dim / kLanes * kLanes;
      for (int64_t head = 0; head < params.num_heads; ++head) {
        append_columns<RowLanes, From, To>(*tensor, token, head, page, row, 0, whole);
        append_columns<RowTail, From, To>(*tensor, token, head, page, row, whole, tensor->head_dim);
      }
    }
  }
}

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
