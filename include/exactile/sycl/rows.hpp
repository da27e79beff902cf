// exactile/sycl/rows.hpp - which rows a work-group takes, in kernels with a sub-group for each
// row. Shared by host and device.
#pragma once

#include <exactile/platform.hpp>

namespace exactile::sycl {

struct Rows {
  static constexpr int kSubGroup = 16;                       ///< work-items of a row
  static constexpr int kOfWorkGroup = 8;                     ///< rows
  static constexpr int kThreads = kSubGroup * kOfWorkGroup;  ///< work-items of a work-group

  int64_t count;  ///< of all work-groups
};

}  // namespace exactile::sycl
