// exactile/cuda/merge.hpp - merges attention results: a warp for each row.
#pragma once

#include <exactile/cuda/row_lanes.hpp>

namespace exactile::cuda {

struct MergeMath {
  EXACTILE_HOST_DEVICE static float exp(float x) { return expf(x); }
  EXACTILE_HOST_DEVICE static float log(float x) { return logf(x); }
};

template <class Element>
__global__ void __launch_bounds__(kRowThreads)
    merge_kernel(const __grid_constant__ MergeParams given,
                 const __grid_constant__ MoreParts more) {
  const RowOfWarp at(given.total_q, given.num_heads);
  if (!at.exists) return;
  MergeParams params = given;
  params.others = more.parts;
  const MergedRow<MergeMath> row(params, at.head, at.token);
  merge_columns<RowLanes, Element>(params, row, at.head, at.token, at.lane, params.head_dim_v);
  if (params.lse && at.lane == 0) params.lse[at.head * params.total_q + at.token] = row.lse();
}

}  // namespace exactile::cuda
