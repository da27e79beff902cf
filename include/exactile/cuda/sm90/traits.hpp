// exactile/cuda/sm90/traits.hpp - the tiles of the Hopper kernels. Host and device read it.
#pragma once

#include <exactile/cuda/params.hpp>
#include <exactile/kv_layout.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile::cuda::sm90 {

/// Bytes of shared memory that a work-group can have.
inline constexpr int kMaxShared = 232448;

/// Consumer warpgroups, keys in a block, keys in a narrow block, blocks in flight; defined only for
/// what is supported. A tile's last block, which is the diagonal one under a causal mask, is
/// computed as a narrow one where that is enough. Three consumers read a third less of K and V from
/// the second-level cache than two, which matters on a power-limited GPU, and overlap better.
/// Limits: shared memory (232,448 bytes for Q and kStages times K and V), and 160 registers (240
/// with two consumers) for kBlockN / 2 scores, twice kBlockN / 4 probabilities and kHeadDimV / 2
/// sums. What was tried: benchmarks/hopper.md.
template <int kHeadDim, int kHeadDimV, MaskKind kMask>
struct TileShape;

template <MaskKind kMask>
struct TileShape<64, 64, kMask> {
  static constexpr int kConsumers = 3, kBlockN = kMask == MaskKind::kPacked ? 80 : 96;
  static constexpr int kNarrowN = 48, kStages = 4;
};

/// Two short sequences fit in a narrow block.
template <>
struct TileShape<96, 96, MaskKind::kPacked> {
  static constexpr int kConsumers = 2, kBlockN = 128, kNarrowN = 80, kStages = 2;
};
template <>
struct TileShape<128, 128, MaskKind::kPacked> {
  static constexpr int kConsumers = 2, kBlockN = 128, kNarrowN = 80, kStages = 2;
};

template <MaskKind kMask>
struct TileShape<96, 96, kMask> {
  static constexpr int kConsumers = 3, kBlockN = 80, kNarrowN = 48, kStages = 4;
};

template <MaskKind kMask>
struct TileShape<128, 128, kMask> {
  static constexpr int kConsumers = 3, kBlockN = 64, kNarrowN = 48, kStages = 4;
};

template <>
struct TileShape<192, 128, MaskKind::kPacked> {
  static constexpr int kConsumers = 2, kBlockN = 112, kNarrowN = 64, kStages = 2;
};
template <MaskKind kMask>
struct TileShape<192, 128, kMask> {
  static constexpr int kConsumers = 3, kBlockN = 64, kNarrowN = 48, kStages = 2;
};

template <>
struct TileShape<256, 256, MaskKind::kPacked> {
  static constexpr int kConsumers = 2, kBlockN = 64, kNarrowN = 48, kStages = 2;
};
template <MaskKind kMask>
struct TileShape<256, 256, kMask> {
  static constexpr int kConsumers = 2, kBlockN = 80, kNarrowN = 48, kStages = 2;
};

/// Warps that look through values, where tiles may hold several sequences.
inline constexpr int kSearchWarps = 2;

/// A tile as the producer hands it to the consumers.
template <class Keys>
struct TileSlot {
  WorkTile work;
  int32_t n_begin;  ///< key blocks [n_begin, n_end), visited from the last to the first
  int32_t n_end;
  bool valid;  ///< false: there is no further tile
};
template <>
struct TileSlot<SplitKeys> : TileSlot<WholeKeys> {
  SplitKeys keys;
};

/// What the threads of a work-group share. Each matrix lies in chunks of kChunk columns,
/// (chunk, row, kChunk), swizzled by TMA, whose pattern repeats every 1,024 bytes.
template <class Traits>
struct alignas(1024) SharedStorage {
  template <int kRows, int kColumns>
  struct alignas(1024) Matrix {
    unsigned char bytes[kRows * kColumns * sizeof(typename Traits::Element)];
  };

  using Slot = TileSlot<typename Traits::Keys>;

  Matrix<Traits::kBlockM, Traits::kHeadDim> q[Traits::kQueries];
  Matrix<Traits::kBlockN, Traits::kHeadDim> k[Traits::kStages];
  Matrix<Traits::kBlockN, Traits::kHeadDimV> v[Traits::kStages];
  // mbarriers: docs/internals.md says who arrives, who waits and what each guards.
  int64_t q_full[Traits::kQueries], q_empty[Traits::kQueries];
  int64_t slot_full[Traits::kQueries], v_checked[Traits::kStages];
  int64_t k_full[Traits::kStages], k_empty[Traits::kStages];
  int64_t v_full[Traits::kStages], v_empty[Traits::kStages];
  Slot slot[Traits::kQueries];
  /// Keys of the slot's last block that a consumer's rows see: up to the last of them.
  int32_t last_keys[Traits::kQueries][Traits::kConsumers];
  /// Of a tile of several sequences: what its tokens see, and whether there are Inf or NaN among
  /// the values of a block. The producer's other warps find out.
  KeyRange keys[Traits::kQueries][Traits::kMask == MaskKind::kPacked ? Traits::kBlockM : 1];
  bool not_finite[Traits::kStages][kSearchWarps];
};

template <class ElementType, int kHeadDimQk, int kHeadDimVo, MaskKind kMaskKind,
          class KvLayoutType = ContiguousKv, class ScoresType = PlainScores,
          class KeysType = WholeKeys, class Shape = TileShape<kHeadDimQk, kHeadDimVo, kMaskKind>>
struct Traits {
  using Element = ElementType;
  using KvLayout = KvLayoutType;
  using Scores = ScoresType;
  using Keys = KeysType;
  using Params = typename ParamsOfKeys<Keys>::Type;
  static constexpr int kHeadDim = kHeadDimQk;
  static constexpr int kHeadDimV = kHeadDimVo;
  static constexpr MaskKind kMask = kMaskKind;

  /// Warpgroups that compute, 64 rows each; one more loads.
  static constexpr int kConsumers = Shape::kConsumers;
  static constexpr int kBlockM = 64 * kConsumers;
  static_assert(kBlockM <= kMaxBlockM);
  static constexpr int kBlockN = Shape::kBlockN;
  static constexpr int kNarrowN = Shape::kNarrowN;
  static_assert(kNarrowN % 16 == 0 && kNarrowN < kBlockN);
  /// Keys in a TMA box: where tiles are short, what they do not need is not loaded. A block's last
  /// box may overlap with the one before.
  static constexpr int kBoxN = kMask != MaskKind::kPacked ? kBlockN : kNarrowN == 80 ? 72 : 16;
  static_assert(kBoxN % 8 == 0);
  static constexpr int kStages = Shape::kStages;
  /// Buffers for Q: two, where shared memory holds them.
  static constexpr int kQueries =
      2 * (2 * kBlockM * kHeadDim + kStages * kBlockN * (kHeadDim + kHeadDimV)) + 1024 <= kMaxShared
          ? 2
          : 1;

  /// Unmasked blocks are computed in pairs, which costs registers.
  static constexpr bool kPairs =
      kMask == MaskKind::kFull || (kMask == MaskKind::kMasked && kHeadDim <= 128);

  /// Columns of a TMA box; its swizzle is as wide, 128 or 64 bytes. Boxes: Q (kChunk, tile_heads,
  /// tile_tokens), K and V (kChunk, 1, kBoxN), over (head_dim, heads, tokens). One box of all
  /// chunks is no faster (benchmarks/hopper.md).
  static constexpr int kChunk = kHeadDim % 64 == 0 ? 64 : 32;
  static_assert(kHeadDim % kChunk == 0 && kHeadDimV % kChunk == 0);

  /// Threads of the producer's warps besides the first, which read what a slot says: those that
  /// prepare packed tiles (packed_tiles.hpp), or load pages (page_loader.hpp).
  static constexpr int kSlotReaders = kMask == MaskKind::kPacked ? 32 * (kSearchWarps + 1)
                                      : KvLayout::kOneRun        ? 0
                                                                 : 2 * 32;

  static constexpr int kThreads = 128 * (kConsumers + 1);
  /// Registers per thread: at launch, and after setmaxnreg, which blocks for ever if the
  /// launch has too few.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kConsumerRegisters = kConsumers == 3              ? 160
                                            : kMask == MaskKind::kPacked ? 232
                                                                         : 240;
  static constexpr int kProducerRegisters =
      (kConsumers + 1) * kLaunchRegisters - kConsumers * kConsumerRegisters;
  static_assert(kProducerRegisters >= 24 && kProducerRegisters % 8 == 0);

  static constexpr int kSharedBytes = sizeof(SharedStorage<Traits>);
  static_assert(kSharedBytes <= kMaxShared);
};

}  // namespace exactile::cuda::sm90
