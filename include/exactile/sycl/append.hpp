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
  const int64_t slot = at.exists ? params.slot(at.token) : -1;
  if (slot < 0) return;
  const int64_t page = slot / params.page_size, row = slot % params.page_size;
  append_columns<RowLanes, From, To>(params.k, at.token, at.head, page, row, at.lane,
                                     params.k.head_dim);
  append_columns<RowLanes, From, To>(params.v, at.token, at.head, page, row, at.lane,
                                     params.v.head_dim);
}

}  // namespace exactile::sycl
