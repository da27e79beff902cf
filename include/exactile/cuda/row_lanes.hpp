// exactile/cuda/row_lanes.hpp - a row for each warp: which it is, and its columns. Device code.
#pragma once

#include <exactile/cuda/ptx.hpp>
#include <exactile/cuda/rows.hpp>

namespace exactile::cuda {

/// What kernels that go through rows compute with: a column for each thread of the warp.
struct RowLanes {
  using Values = float;
  static constexpr int kStep = 32;
  template <class Element>
  EXACTILE_DEVICE static float load(const Element* p) {
    return ptx::to_float(*p);
  }
  template <class Element>
  EXACTILE_DEVICE static void store(Element* p, float x) {
    if constexpr (SameAs<Element, float>) {
      *p = x;
    } else {
      *p = {static_cast<unsigned short>(ptx::pack<Element>(x, 0.0f))};
    }
  }
  template <class Element>
  EXACTILE_DEVICE static void copy(Element* to, const Element* from) {
    *to = *from;
  }
  EXACTILE_DEVICE static float multiply_add(float sum, float x, float weight) {
    return fmaf(x, weight, sum);
  }
};

/// Row (token, head) of the calling warp, all heads of a token one after the other.
struct RowOfWarp {
  int64_t token, head;
  int64_t lane;  ///< of the thread
  bool exists;

  EXACTILE_DEVICE RowOfWarp(int64_t num_tokens, int64_t num_heads) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / 32;
    exists = index < num_tokens * num_heads;
    token = exists ? index / num_heads : 0;
    head = exists ? index % num_heads : 0;
    lane = threadIdx.x % 32;
  }
};

}  // namespace exactile::cuda
