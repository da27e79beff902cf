// exactile/sycl/append.hpp - writes new rows of K and V into pages: a sub-group for each head of a
// token.
#pragma once

#include <exactile/append.hpp>
#include <exactile/sycl/row_lanes.hpp>

namespace exactile::sycl {

template <class From, class To>
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((ext::oneapi::experimental::nd_range_kernel<1>))
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((ext::oneapi::experimental::sub_group_size<Rows::kSubGroup>))
EXACTILE_HOST_DEVICE void append_kernel(AppendParams params, Rows rows) {
  const RowOfSubGroup at(rows, params.num_heads);
  if (at.exists) append_row<RowLanes, From, To>(params, at.token, at.head, at.lane);
}

}  // namespace exactile::sycl
