// exactile/sycl/xmx/traits.hpp - tile sizes of the kernel for Intel GPUs with matrix engines (XMX)
// and 2D block messages. Includes nothing of SYCL: the host reads the sizes too.
#pragma once

#include <exactile/sycl/params.hpp>

namespace exactile::sycl::xmx {

/// Architectures, as template arguments of Traits. Xe-HPG (Arc A-series) is none: its dpas is 8
/// wide and it has no 2D block messages, so it takes the portable kernel.
struct XeHpc {};  ///< Ponte Vecchio
struct Xe2 {};    ///< Battlemage, Lunar Lake

/// Whether 2D block messages reach a tensor whose tokens, heads and pages lie on 64-byte
/// boundaries, as those of a contiguous one do. Strides in elements of 16 bits.
EXACTILE_HOST_DEVICE bool is_reachable(const KvTensor& tensor) {
  constexpr int64_t kAligned = 32, kPitchLimit = 1 << 23;
  return reinterpret_cast<unsigned long long>(tensor.data) % 64 == 0 &&
         tensor.token_stride % kAligned == 0 && tensor.head_stride % kAligned == 0 &&
         tensor.page_stride % kAligned == 0 && tensor.token_stride > 0 &&
         tensor.token_stride <= kPitchLimit;
}

/// What the registers of a sub-group hold. Defined where supported.
template <int kHeadDim, int kHeadDimV>
struct RegisterTile;
template <>
struct RegisterTile<64, 64> {
  static constexpr int kRows = 16, kBlockN = 64;
  static constexpr bool kKeepsQueries = true;
};
template <>
struct RegisterTile<96, 96> {
  static constexpr int kRows = 16, kBlockN = 32;
  static constexpr bool kKeepsQueries = false;
};
template <>
struct RegisterTile<128, 128> {
  static constexpr int kRows = 16, kBlockN = 32;
  static constexpr bool kKeepsQueries = false;
};
template <>
struct RegisterTile<192, 128> {
  static constexpr int kRows = 16, kBlockN = 32;
  static constexpr bool kKeepsQueries = false;
};
template <>
struct RegisterTile<192, 192> {
  static constexpr int kRows = 8, kBlockN = 32;
  static constexpr bool kKeepsQueries = false;
};

template <class Element_, int kHeadDim_, int kHeadDimV_, class Arch_,
          class KvLayout_ = ContiguousKv, class Scores_ = PlainScores>
struct Traits {
  using Element = Element_;
  using Arch = Arch_;
  using KvLayout = KvLayout_;
  using Scores = Scores_;
  static_assert(SameAs<Element, Fp16> || SameAs<Element, Bf16>);
  static_assert(SameAs<Arch, XeHpc> || SameAs<Arch, Xe2>);
  using Tile = RegisterTile<kHeadDim_, kHeadDimV_>;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadDimV = kHeadDimV_;
  static constexpr bool kPlain = KvLayout::kOneRun && !Scores::kChanges;

  static constexpr int kSubGroup = 16;               // work-items
  static constexpr int kSubGroups = 8;               // they share K and V through L1
  static constexpr int kSubGroupRows = Tile::kRows;  // of one head
  /// Else they are read anew for every block.
  static constexpr bool kKeepsQueries = Tile::kKeepsQueries && kPlain;
  static constexpr int kBlockM = kSubGroupRows * kSubGroups;
  static constexpr int kBlockN = Tile::kBlockN;
  /// The keys of a page are a multiple of it.
  static constexpr int kPageStep = 16;
  /// Keys in a message of values, which are a run. Pages and other scores take registers: fewer.
  static constexpr int kRunKeys = kPlain ? 32 : kPageStep;
  static constexpr int kThreads = kSubGroups * kSubGroup;
  static constexpr int kLocalBytes = 0;   // besides the scheduler's
  static constexpr int kRegisters = 256;  // of a hardware thread: the large register file
  static_assert(kHeadDim % 32 == 0 && kHeadDimV % 32 == 0 && kBlockN % 32 == 0);
};

}  // namespace exactile::sycl::xmx
