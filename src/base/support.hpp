// src/base/support.hpp - the rows of support.def as data.
#pragma once

#include <span>
#include <string>

#include <exactile/platform.hpp>

#include "base/types.hpp"

namespace exactile {

struct SupportRow {
  Backend backend;
  Dtype dtype;
  int32_t head_dim;
  int32_t head_dim_v;
};

std::span<const SupportRow> support_rows();

/// Backends that no row names can still be planned for, with any head_dim that some row names.
bool is_supported(Backend backend, Dtype dtype, int64_t head_dim, int64_t head_dim_v);

/// "float16, bfloat16": what `backend` takes, for messages.
std::string supported_dtypes(Backend backend);

/// "(64, 64), (192, 128)": what `backend` takes for `dtype`, for messages; may be empty.
std::string supported_head_dims(Backend backend, Dtype dtype);

}  // namespace exactile
