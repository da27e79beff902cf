// exactile/sycl/portable/traits.hpp - tile sizes of the kernel for every SYCL device with 16-wide
// sub-groups. Includes nothing of SYCL: the host reads the sizes too.
#pragma once

#include <exactile/sycl/params.hpp>

namespace exactile::sycl::portable {

template <class Element_, int kHeadDim_, int kHeadDimV_>
struct Traits {
  using Element = Element_;
  static_assert(SameAs<Element, float> || SameAs<Element, Fp16> || SameAs<Element, Bf16>);
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadDimV = kHeadDimV_;

  static constexpr int kSubGroup = 16;     // work-items
  static constexpr int kSubGroupRows = 8;  // rows that a sub-group computes
  static constexpr int kBlockM = kHeadDim > 128 ? 32 : 64;
  static constexpr int kBlockN = 32;
  static constexpr int kThreads = kBlockM / kSubGroupRows * kSubGroup;
  static_assert(kHeadDim % kSubGroup == 0 && kHeadDimV % kSubGroup == 0);
  static_assert(kBlockN % kSubGroup == 0);

  static constexpr int kFloatsQ = kBlockM * kHeadDim;
  static constexpr int kFloatsK = kHeadDim * kBlockN;
  static constexpr int kFloatsP = kBlockM * kBlockN;
  /// Work-group local memory, all in float.
  static constexpr int kLocalBytes = (kFloatsQ + kFloatsK + kFloatsP) * 4;
  static_assert(kLocalBytes <= 63 * 1024,
                "Intel GPUs give a work-group 64 KB; 1 is the scheduler's");
};

}  // namespace exactile::sycl::portable
