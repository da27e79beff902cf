// exactile/sycl/row_lanes.hpp - a row for each sub-group: which it is, and its columns. Device
// code.
#pragma once

#include <exactile/sycl/element.hpp>
#include <exactile/sycl/rows.hpp>
#include <sycl/sycl.hpp>

namespace exactile::sycl {

namespace ext = ::sycl::ext;  // the vendor's macros name sycl::ext, which in here is this namespace

/// What kernels that go through rows compute with: a column for each work-item of the sub-group.
struct RowLanes {
  using Values = float;
  static constexpr int kStep = Rows::kSubGroup;
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

/// Row (token, head) of the calling sub-group, all heads of a token one after the other.
struct RowOfSubGroup {
  int64_t token, head;
  int64_t lane;  ///< of the work-item
  bool exists;

  EXACTILE_HOST_DEVICE RowOfSubGroup(const Rows& rows, int64_t num_heads) {
    const auto item = ::sycl::ext::oneapi::this_work_item::get_nd_item<1>();
    const auto sub_group = ::sycl::ext::oneapi::this_work_item::get_sub_group();
    const int64_t index = static_cast<int64_t>(item.get_group_linear_id()) * Rows::kOfWorkGroup +
                          static_cast<int64_t>(sub_group.get_group_linear_id());
    exists = index < rows.count;
    token = exists ? index / num_heads : 0;
    head = exists ? index % num_heads : 0;
    lane = static_cast<int64_t>(sub_group.get_local_linear_id());
  }
};

}  // namespace exactile::sycl
