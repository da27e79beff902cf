// exactile/cuda/sm80/traits.hpp - tile sizes of the kernels for every NVIDIA GPU from Ampere on.
//
// Shared memory stays below the 99 KB that sm_86, sm_89 and sm_120 give to a work-group: the same
// tile shape, and so the same bits, everywhere.
#pragma once

#include <exactile/cuda/params.hpp>
#include <exactile/kv_layout.hpp>

namespace exactile::cuda::sm80 {

/// Keys in a block, and how many blocks of K and of V are held at a time. Defined where supported.
template <int kHeadDim, int kHeadDimV>
struct KeyBlocks;
template <>
struct KeyBlocks<64, 64> {
  static constexpr int kBlockN = 96, kStages = 2;
};
template <>
struct KeyBlocks<96, 96> {
  static constexpr int kBlockN = 64, kStages = 2;
};
template <>
struct KeyBlocks<128, 128> {
  static constexpr int kBlockN = 64, kStages = 2;
};
template <>
struct KeyBlocks<192, 128> {
  static constexpr int kBlockN = 64, kStages = 1;
};
template <>
struct KeyBlocks<256, 256> {
  static constexpr int kBlockN = 32, kStages = 1;
};

template <class Element_, int kHeadDim_, int kHeadDimV_, MaskKind kMask_,
          class KvLayout_ = ContiguousKv, class Scores_ = PlainScores, class Keys_ = WholeKeys>
struct Traits {
  using Element = Element_;
  using KvLayout = KvLayout_;
  using Scores = Scores_;
  using Keys = Keys_;
  using Params = typename ParamsOfKeys<Keys>::Type;
  static_assert(SameAs<Element, Fp16> || SameAs<Element, Bf16>);
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadDimV = kHeadDimV_;
  static constexpr MaskKind kMask = kMask_;

  static constexpr int kBlockM = kHeadDim == 64 ? 192 : 128;
  static constexpr int kBlockN = KeyBlocks<kHeadDim, kHeadDimV>::kBlockN;
  static constexpr int kStages = KeyBlocks<kHeadDim, kHeadDimV>::kStages;
  static constexpr int kThreads = 2 * kBlockM;  // a warp has 16 rows: one mma high
  static constexpr int kWarpRows = kBlockM / (kThreads / 32);
  static_assert(kWarpRows == 16);

  static constexpr int kBytesQ = kBlockM * kHeadDim * 2;
  static constexpr int kBytesK = kBlockN * kHeadDim * 2;   // of one stage
  static constexpr int kBytesV = kBlockN * kHeadDimV * 2;  // of one stage
  /// Dynamic shared memory.
  static constexpr int kSharedBytes = kBytesQ + kStages * (kBytesK + kBytesV);
  static_assert(kSharedBytes <= 98 * 1024, "1 KB is left to the scheduler");
};

}  // namespace exactile::cuda::sm80
