// src/base/kernel_rows.hpp - support.def's rows as the template arguments of a backend's kernels.
#pragma once

#include <exactile/element.hpp>
#include <exactile/platform.hpp>
#include <exactile/support.def>
#include <string>
#include <vector>

#include "base/types.hpp"

namespace exactile {

template <Dtype kDtype>
struct ElementOf {
  using Type = float;
};
template <>
struct ElementOf<Dtype::kFloat16> {
  using Type = Fp16;
};
template <>
struct ElementOf<Dtype::kBfloat16> {
  using Type = Bf16;
};

/// The element of a dtype, for source that is compiled at run time.
inline std::string element_name(Dtype dtype) {
  constexpr const char* kNames[kNumDtypes] = {"float", "exactile::Fp16", "exactile::Bf16"};
  return kNames[static_cast<int>(dtype)];
}

/// A row, and what a backend's host code needs to know of its kernels.
template <class Shapes>
struct KernelRow {
  Dtype dtype;
  int32_t head_dim;
  int32_t head_dim_v;
  Shapes shapes;
};

/// A backend's rows; make.template operator()<Element, kHeadDim, kHeadDimV>() gives the shapes.
template <Backend kBackend, class Shapes, class Make>
std::vector<KernelRow<Shapes>> kernel_rows(Make make) {
  std::vector<KernelRow<Shapes>> rows;
#define EXACTILE_ROW(backend, dtype, kHeadDim, kHeadDimV)                       \
  if constexpr (Backend::backend == kBackend) {                                 \
    using Element = typename ElementOf<Dtype::dtype>::Type;                     \
    rows.push_back({Dtype::dtype, kHeadDim, kHeadDimV,                          \
                    make.template operator()<Element, kHeadDim, kHeadDimV>()}); \
  }
  EXACTILE_SUPPORT(EXACTILE_ROW)
#undef EXACTILE_ROW
  return rows;
}

/// Null where there is none.
template <class Shapes>
const Shapes* find_row(const std::vector<KernelRow<Shapes>>& rows, Dtype dtype, int64_t head_dim,
                       int64_t head_dim_v) {
  for (const KernelRow<Shapes>& row : rows) {
    if (row.dtype == dtype && row.head_dim == head_dim && row.head_dim_v == head_dim_v) {
      return &row.shapes;
    }
  }
  return nullptr;
}

}  // namespace exactile
