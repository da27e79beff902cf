// src/base/support.cpp - answers questions about support.def.
#include "base/support.hpp"

#include <algorithm>
#include <exactile/support.def>
#include <vector>

namespace exactile {
namespace {

#define EXACTILE_ROW(backend, dtype, head_dim, head_dim_v) \
  {Backend::backend, Dtype::dtype, head_dim, head_dim_v},
constexpr SupportRow kRows[] = {EXACTILE_SUPPORT(EXACTILE_ROW)};
#undef EXACTILE_ROW

bool has_rows(Backend backend) {
  return std::ranges::any_of(kRows, [&](const SupportRow& row) { return row.backend == backend; });
}

/// Rows for one dtype; those of every backend where this one has none.
std::vector<SupportRow> rows_of(Backend backend, Dtype dtype) {
  std::vector<SupportRow> rows;
  for (const SupportRow& row : kRows) {
    if (row.dtype == dtype && (row.backend == backend || !has_rows(backend))) rows.push_back(row);
  }
  return rows;
}

}  // namespace

std::span<const SupportRow> support_rows() { return kRows; }

bool is_supported(Backend backend, Dtype dtype, int64_t head_dim, int64_t head_dim_v) {
  return std::ranges::any_of(kRows, [&](const SupportRow& row) {
    return row.dtype == dtype && row.head_dim == head_dim && row.head_dim_v == head_dim_v &&
           (row.backend == backend || !has_rows(backend));
  });
}

std::string supported_dtypes(Backend backend) {
  std::string list;
  for (int i = 0; i < kNumDtypes; ++i) {
    if (rows_of(backend, static_cast<Dtype>(i)).empty()) continue;
    list += (list.empty() ? "" : ", ") + std::string(kDtypeNames[i]);
  }
  return list;
}

std::string supported_head_dims(Backend backend, Dtype dtype) {
  std::string list;
  for (const SupportRow& row : rows_of(backend, dtype)) {
    list += (list.empty() ? "(" : ", (") + std::to_string(row.head_dim) + ", " +
            std::to_string(row.head_dim_v) + ")";
  }
  return list;
}

}  // namespace exactile
