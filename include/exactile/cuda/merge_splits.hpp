// exactile/cuda/merge_splits.hpp - merges the parts of tiles whose keys were split: a warp for each
// row.
#pragma once

#include <exactile/cuda/row_lanes.hpp>
#include <exactile/key_splits.hpp>

namespace exactile::cuda {

template <class Element>
__global__ void __launch_bounds__(kRowThreads)
    merge_splits_kernel(const __grid_constant__ SplitMergeParams params) {
  ptx::wait_for_previous_grids();  // the kernel that computes the parts
  const int32_t index =
      static_cast<int32_t>(blockIdx.x) * kRowsOfBlock + static_cast<int32_t>(threadIdx.x / 32);
  if (index >= params.num_rows) return;
  const SplitRow row(params, index);
  const MergedState<ptx::Math> state(params, row);
  const RowSum<SinkScores, ptx::Math> sum(params.scores, state.sum(), state.reference(),
                                          params.scale_log2, [&] { return row.head; });
  const float inverse = sum.total() == 0 ? 0.0f : ptx::reciprocal(sum.total());
  const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
  Element* const out = static_cast<Element*>(params.out.data) +
                       row.token * params.out.token_stride + row.head * params.out.head_stride;
  for (int32_t c = 4 * lane; c < params.head_dim_v; c += 128) {
    float sums[4] = {};
    for (int32_t i = 0; i < row.num_parts; ++i) {
      const float weight = state.weight(i);
      if (weight == 0) continue;  // what a part that saw no key has, does not matter
      const float4 part = *reinterpret_cast<const float4*>(
          params.partial.out + (row.first + i * row.stride) * params.head_dim_v + c);
      sums[0] = fmaf(part.x, weight, sums[0]);
      sums[1] = fmaf(part.y, weight, sums[1]);
      sums[2] = fmaf(part.z, weight, sums[2]);
      sums[3] = fmaf(part.w, weight, sums[3]);
    }
    const uint2 words = {ptx::pack<Element>(sums[0] * inverse, sums[1] * inverse),
                         ptx::pack<Element>(sums[2] * inverse, sums[3] * inverse)};
    *reinterpret_cast<uint2*>(out + c) = words;
  }
  if (params.lse && lane == 0) {
    params.lse[row.head * params.lse_head_stride + row.token] =
        sum.lse(state.reference(), params.scale_log2);
  }
}

}  // namespace exactile::cuda
