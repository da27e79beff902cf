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
  if (at.exists) append_row<RowLanes, From, To>(params, at.token, at.head, at.lane);
}

}  // namespace exactile::cuda
