// exactile/cuda/merge.hpp - merges attention results: a warp for each row. Compiles; has not been
// run on a GPU, and no run asks for it yet.
#pragma once

#include <exactile/cuda/ptx.hpp>
#include <exactile/merge.hpp>

namespace exactile::cuda {

inline constexpr int kMergeThreads = 128;  ///< of a thread block: 4 rows

struct MergeMath {
  EXACTILE_HOST_DEVICE static float exp(float x) { return expf(x); }
  EXACTILE_HOST_DEVICE static float log(float x) { return logf(x); }
};

/// What kernels that go through rows compute with: a column for each thread of the warp.
struct RowLanes {
  using Values = float;
  static constexpr int kStep = 32;
  template <class Element>
  EXACTILE_DEVICE static float load(const Element* p) {
    return ptx::to_float(*p);
  }
  template <class Element>
  EXACTILE_DEVICE static void store(Element* p, float x) {
    if constexpr (SameAs<Element, float>) {
      *p = x;
    } else {
      *p = {static_cast<unsigned short>(ptx::pack<Element>(x, 0.0f))};
    }
  }
  template <class Element>
  EXACTILE_DEVICE static void copy(Element* to, const Element* from) {
    *to = *from;
  }
  EXACTILE_DEVICE static float multiply_add(float sum, float x, float weight) {
    return fmaf(x, weight, sum);
  }
};

template <class Element>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(MergeParams params) {
  constexpr int kRows = kMergeThreads / RowLanes::kStep;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / RowLanes::kStep;
  if (index >= params.total_q * params.num_heads) return;
  const int64_t token = index / params.num_heads, head = index % params.num_heads;
  const int64_t lane = threadIdx.x % RowLanes::kStep;
  const MergedRow<MergeMath> row(params, head, token);
  merge_columns<RowLanes, Element>(params, row, head, token, lane, params.head_dim_v);
  if (params.lse && lane == 0) params.lse[head * params.total_q + token] = row.lse();
}

}  // namespace exactile::cuda
