// exactile/sycl/merge_rows.hpp - which rows the merge kernel's work-groups take. Shared by host and
// device.
#pragma once

#include <exactile/platform.hpp>

namespace exactile::sycl {

struct MergeRows {
  static constexpr int kSubGroup = 16;                       ///< work-items of a row
  static constexpr int kOfWorkGroup = 8;                     ///< rows
  static constexpr int kThreads = kSubGroup * kOfWorkGroup;  ///< work-items of a work-group

  int64_t count;  ///< of all work-groups
};

}  // namespace exactile::sycl
