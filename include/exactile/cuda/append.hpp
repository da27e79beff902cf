// exactile/cuda/append.hpp - writes new rows of K and V into pages: a warp for each head of a
// token.
#pragma once

#include <exactile/append.hpp>
#include <exactile/cuda/row_lanes.hpp>

namespace exactile::cuda {

template <class From, class To>
__global__ void __launch_bounds__(kRowThreads)
    append_kernel(const __grid_constant__ AppendParams params) {
  const RowOfWarp at(params.num_tokens, params.num_heads);
  const int64_t slot = at.exists ? params.slot(at.token) : -1;
  if (slot < 0) return;
  const int64_t page = slot / params.page_size, row = slot % params.page_size;
  append_columns<RowLanes, From, To>(params.k, at.token, at.head, page, row, at.lane,
                                     params.k.head_dim);
  append_columns<RowLanes, From, To>(params.v, at.token, at.head, page, row, at.lane,
                                     params.v.head_dim);
}

}  // namespace exactile::cuda
