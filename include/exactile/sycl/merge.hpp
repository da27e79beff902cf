// exactile/sycl/merge.hpp - merges attention results: a sub-group for each row.
#pragma once

#include <exactile/merge.hpp>
#include <exactile/sycl/row_lanes.hpp>

namespace exactile::sycl {

struct MergeMath {
  EXACTILE_HOST_DEVICE static float exp(float x) { return ::sycl::exp(x); }
  EXACTILE_HOST_DEVICE static float log(float x) { return ::sycl::log(x); }
};

template <class Element>
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((ext::oneapi::experimental::nd_range_kernel<1>))
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((ext::oneapi::experimental::sub_group_size<Rows::kSubGroup>))
EXACTILE_HOST_DEVICE void merge_kernel(MergeParams params, Rows rows) {
  const RowOfSubGroup at(rows, params.num_heads);
  if (!at.exists) return;
  const MergedRow<MergeMath> row(params, at.head, at.token);
  merge_columns<RowLanes, Element>(params, row, at.head, at.token, at.lane, params.head_dim_v);
  if (params.lse && at.lane == 0) params.lse[at.head * params.total_q + at.token] = row.lse();
}

}  // namespace exactile::sycl
