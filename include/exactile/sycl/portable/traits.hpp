// exactile/sycl/portable/traits.hpp - tile sizes of the kernel for every SYCL device with 16-wide
// sub-groups. Includes nothing of SYCL: the host reads the sizes too.
#pragma once

#include <exactile/kv_layout.hpp>
#include <exactile/sycl/params.hpp>

namespace exactile::sycl::portable {

template <class Element_, int kHeadDim_, int kHeadDimV_, class KvLayout_ = ContiguousKv,
          class Scores_ = PlainScores>
struct Traits {
  using Element = Element_;
  using KvLayout = KvLayout_;
  using Scores = Scores_;
  static_assert(SameAs<Element, float> || SameAs<Element, Fp16> || SameAs<Element, Bf16>);
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadDimV = kHeadDimV_;

  static constexpr int kSubGroup = 16;     // work-items
  static constexpr int kSubGroupRows = 8;  // rows that a sub-group computes
  /// As many rows as fit into local memory.
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(Element));
  static constexpr int kBlockM = kRowBytes <= 256 ? 128 : kRowBytes <= 512 ? 64 : 32;
  static constexpr int kBlockN = 32;
  static constexpr int kPageStep = 1;  // the keys of a page are a multiple of it
  static constexpr int kThreads = kBlockM / kSubGroupRows * kSubGroup;
  static_assert(kHeadDim % kSubGroup == 0 && kHeadDimV % kSubGroup == 0);
  static_assert(kBlockN % kSubGroup == 0);

  /// Work-group local memory: the queries, a block of keys, probabilities in float.
  static constexpr int kLocalBytes = (kBlockM + kBlockN) * kRowBytes + kBlockM * kBlockN * 4;
  static_assert(kLocalBytes <= 63 * 1024, "64 KB on many GPUs, of which the scheduler needs some");
};

}  // namespace exactile::sycl::portable
