// exactile/cuda/sm90/traits.hpp - the tiles of the Hopper room. Host and device read it.
#pragma once

#include <exactile/cuda/params.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile::cuda::sm90 {

/// Consumer warpgroups, keys in a block, keys in a narrow block, blocks in flight; defined only for
/// what is supported. A tile's last block, which is the diagonal one under a causal mask, is
/// computed as a narrow one where that is enough. Limits: shared memory (232,448 bytes for Q and
/// kStages times K and V), and 232 registers (160 with three consumers) for kBlockN / 2 scores,
/// kBlockN / 4 probabilities and kHeadDimV / 2 sums. Tried, beside FA3 on an H200, 2026-11: 176
/// keys for kBorder at head_dim 128 take 64 x 1,024 causal from 1.25 to 1.08 times FA3 and gain
/// nothing elsewhere; two consumers at head_dim 64 lose 13 % (192 keys win 1 to 3 % back);
/// consumers that take turns to issue their matrix products gain nothing with three and lose 1 to 2
/// % with two.
template <int kHeadDim, int kHeadDimV, MaskKind kMask>
struct TileShape;

template <MaskKind kMask>
struct TileShape<64, 64, kMask> {
  static constexpr int kConsumers = 3, kBlockN = 128, kNarrowN = 64, kStages = 3;
};

/// Two short sequences fit in a narrow block.
template <>
struct TileShape<96, 96, MaskKind::kPacked> {
  static constexpr int kConsumers = 2, kBlockN = 160, kNarrowN = 80, kStages = 2;
};
template <>
struct TileShape<128, 128, MaskKind::kPacked> {
  static constexpr int kConsumers = 2, kBlockN = 160, kNarrowN = 80, kStages = 2;
};

template <MaskKind kMask>
struct TileShape<96, 96, kMask> {
  static constexpr int kConsumers = 2, kBlockN = kMask == MaskKind::kFull ? 176 : 128;
  static constexpr int kNarrowN = kMask == MaskKind::kFull ? 96 : 64, kStages = 2;
};

template <MaskKind kMask>
struct TileShape<128, 128, kMask> {
  static constexpr int kConsumers = 2, kBlockN = kMask == MaskKind::kFull ? 176 : 128;
  static constexpr int kNarrowN = kMask == MaskKind::kFull ? 96 : 64, kStages = 2;
};

template <MaskKind kMask>
struct TileShape<192, 128, kMask> {
  static constexpr int kConsumers = 2, kBlockN = kMask == MaskKind::kFull ? 128 : 112;
  static constexpr int kNarrowN = 64, kStages = 2;
};

template <MaskKind kMask>
struct TileShape<256, 256, kMask> {
  static constexpr int kConsumers = 2, kBlockN = 80, kNarrowN = 48, kStages = 2;
};

/// What the threads of a work-group share. Each matrix lies in chunks of kChunk columns,
/// (chunk, row, kChunk), swizzled by TMA, whose pattern repeats every 1,024 bytes.
template <class Traits>
struct alignas(1024) SharedStorage {
  template <int kRows, int kColumns>
  struct alignas(1024) Matrix {
    unsigned char bytes[kRows * kColumns * sizeof(typename Traits::Element)];
  };

  /// A tile as the producer hands it to the consumers.
  struct Slot {
    WorkTile work;
    int32_t n_begin;  ///< key blocks [n_begin, n_end), visited from the last to the first
    int32_t n_end;
    bool valid;  ///< false: there is no further tile
  };

  Matrix<Traits::kBlockM, Traits::kHeadDim> q;
  Matrix<Traits::kBlockN, Traits::kHeadDim> k[Traits::kStages];
  Matrix<Traits::kBlockN, Traits::kHeadDimV> v[Traits::kStages];
  // mbarriers. q_full, q_empty guard the slot as well.
  int64_t q_full, q_empty;
  int64_t k_full[Traits::kStages], k_empty[Traits::kStages];
  int64_t v_full[Traits::kStages], v_empty[Traits::kStages];
  Slot slot;
};

template <class ElementType, int kHeadDimQk, int kHeadDimVo, MaskKind kMaskKind,
          class Shape = TileShape<kHeadDimQk, kHeadDimVo, kMaskKind>>
struct Traits {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimQk;
  static constexpr int kHeadDimV = kHeadDimVo;
  static constexpr MaskKind kMask = kMaskKind;

  /// Warpgroups that compute, 64 rows each; one more loads.
  static constexpr int kConsumers = Shape::kConsumers;
  static constexpr int kBlockM = 64 * kConsumers;
  static constexpr int kBlockN = Shape::kBlockN;
  static constexpr int kNarrowN = Shape::kNarrowN;
  static_assert(kNarrowN % 16 == 0 && kNarrowN < kBlockN);
  /// Keys in a TMA box: where tiles are short, what they do not need is not loaded.
  static constexpr int kBoxN = kMask != MaskKind::kPacked ? kBlockN
                               : 2 * kNarrowN == kBlockN  ? kNarrowN
                                                          : 16;
  static_assert(kBlockN % kBoxN == 0);
  static constexpr int kStages = Shape::kStages;

  /// Columns of a TMA box; its swizzle is as wide, 128 or 64 bytes. Boxes: Q (kChunk, tile_heads,
  /// tile_tokens), K and V (kChunk, 1, kBoxN), over (head_dim, heads, tokens).
  static constexpr int kChunk = kHeadDim % 64 == 0 ? 64 : 32;
  static_assert(kHeadDim % kChunk == 0 && kHeadDimV % kChunk == 0);

  static constexpr int kThreads = 128 * (kConsumers + 1);
  /// Registers per thread after the exchange; at launch all have 65,536 / kThreads.
  static constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 232 : 160;
  static_assert(128 * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536);

  static constexpr int kSharedBytes = sizeof(SharedStorage<Traits>);
  static_assert(kSharedBytes <= 232448);
};

}  // namespace exactile::cuda::sm90
