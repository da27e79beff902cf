// exactile/cuda/rows.hpp - kernels that have a warp for each row: their launch, and the parts of a
// merge. Shared by host (g++) and device (NVRTC).
#pragma once

#include <exactile/merge.hpp>

namespace exactile::cuda {

inline constexpr int kRowsOfBlock = 4;
inline constexpr int kRowThreads = 32 * kRowsOfBlock;

/// Of a merge: the parts for which MergeParams has no room. Kernel parameters, of which there may
/// be 4,096 bytes, need no memory that a graph would have to keep.
struct MoreParts {
  static constexpr int kMost = 64;
  MergePart parts[kMost];
};
static_assert(sizeof(MergeParams) + sizeof(MoreParts) <= 4096);

}  // namespace exactile::cuda
