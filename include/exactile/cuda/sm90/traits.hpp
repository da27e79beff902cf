// exactile/cuda/sm90/traits.hpp - the tiles of the Hopper room. Host and device read it.
#pragma once

#include <exactile/cuda/params.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile::cuda::sm90 {

/// Keys in a block and blocks in flight; defined only for what is supported. Limits: shared memory
/// (232,448 bytes for Q and kStages times K and V), and 232 registers for kBlockN / 2 scores,
/// kBlockN / 4 probabilities and kHeadDimV / 2 sums. Border masks take narrower blocks: half of a
/// diagonal block is wasted. Tried, beside FA3 on an H200, 2026-11: 176 for kBorder at head_dim 128
/// takes 64 x 1,024 causal from 1.25 to 1.08 times FA3 and gains nothing elsewhere; 192 and 176 at
/// head_dim 64 gain 1 and 3 % on 16 skewed sequences (0.92 and 0.87 times FA3).
template <int kHeadDim, int kHeadDimV, MaskKind kMask>
struct TileShape;

template <MaskKind kMask>
struct TileShape<64, 64, kMask> {
  static constexpr int kBlockN = kMask == MaskKind::kFull ? 176 : 128;
  static constexpr int kStages = 3;
};

template <MaskKind kMask>
struct TileShape<96, 96, kMask> {
  static constexpr int kBlockN = kMask == MaskKind::kFull ? 176 : 128;
  static constexpr int kStages = 2;
};

template <MaskKind kMask>
struct TileShape<128, 128, kMask> {
  static constexpr int kBlockN = kMask == MaskKind::kFull ? 176 : 128;
  static constexpr int kStages = 2;
};

template <MaskKind kMask>
struct TileShape<192, 128, kMask> {
  static constexpr int kBlockN = kMask == MaskKind::kFull ? 128 : 112;
  static constexpr int kStages = 2;
};

template <MaskKind kMask>
struct TileShape<256, 256, kMask> {
  static constexpr int kBlockN = 80;
  static constexpr int kStages = 2;
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

  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = Shape::kBlockN;
  static constexpr int kStages = Shape::kStages;

  /// Columns of a TMA box; its swizzle is as wide, 128 or 64 bytes. Boxes: Q (kChunk, tile_heads,
  /// tile_tokens), K and V (kChunk, 1, kBlockN), over (head_dim, heads, tokens).
  static constexpr int kChunk = kHeadDim % 64 == 0 ? 64 : 32;
  static_assert(kHeadDim % kChunk == 0 && kHeadDimV % kChunk == 0);

  /// Warpgroups that compute, 64 rows each; one more loads.
  static constexpr int kConsumers = kBlockM / 64;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  /// Registers per thread after the exchange; at launch all have 65,536 / kThreads.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static_assert(128 * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536);

  static constexpr int kSharedBytes = sizeof(SharedStorage<Traits>);
  static_assert(kSharedBytes <= 232448);
};

}  // namespace exactile::cuda::sm90
