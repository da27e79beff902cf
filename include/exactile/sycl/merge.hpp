// exactile/sycl/merge.hpp - merges attention results: a sub-group for each row.
#pragma once

#include <exactile/merge.hpp>
#include <exactile/sycl/element.hpp>
#include <exactile/sycl/merge_rows.hpp>
#include <sycl/sycl.hpp>

namespace exactile::sycl {

namespace ext = ::sycl::ext;  // the vendor's macros name sycl::ext, which in here is this namespace

struct MergeMath {
  EXACTILE_HOST_DEVICE static float exp(float x) { return ::sycl::exp(x); }
  EXACTILE_HOST_DEVICE static float log(float x) { return ::sycl::log(x); }
};

/// A column for each work-item of the sub-group.
struct MergeLanes {
  using Values = float;
  static constexpr int kStep = MergeRows::kSubGroup;
  template <class Element>
  EXACTILE_HOST_DEVICE static float load(const Element* p) {
    return to_float(*p);
  }
  template <class Element>
  EXACTILE_HOST_DEVICE static void store(Element* p, float x) {
    *p = from_float<Element>(x);
  }
  template <class Element>
  EXACTILE_HOST_DEVICE static void copy(Element* to, const Element* from) {
    *to = *from;
  }
  EXACTILE_HOST_DEVICE static float multiply_add(float sum, float x, float weight) {
    return ::sycl::fma(x, weight, sum);
  }
};

template <class Element>
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((ext::oneapi::experimental::nd_range_kernel<1>))
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((ext::oneapi::experimental::sub_group_size<MergeRows::kSubGroup>))
EXACTILE_HOST_DEVICE void merge_kernel(MergeParams params, MergeRows rows) {
  const auto item = ::sycl::ext::oneapi::this_work_item::get_nd_item<1>();
  const auto sub_group = ::sycl::ext::oneapi::this_work_item::get_sub_group();
  const int64_t index = static_cast<int64_t>(item.get_group_linear_id()) * MergeRows::kOfWorkGroup +
                        static_cast<int64_t>(sub_group.get_group_linear_id());
  if (index >= rows.count) return;
  const int64_t token = index / params.num_heads, head = index % params.num_heads;
  const auto lane = static_cast<int64_t>(sub_group.get_local_linear_id());
  const MergedRow<MergeMath> row(params, head, token);
  merge_columns<MergeLanes, Element>(params, row, head, token, lane, params.head_dim_v);
  if (params.lse && lane == 0) params.lse[head * params.total_q + token] = row.lse();
}

}  // namespace exactile::sycl
