// exactile/cuda/params.hpp - what the CUDA kernels are told. Shared by host (g++) and device
// (NVRTC, nvcc).
#pragma once

#include <exactile/mask.hpp>
#include <exactile/platform.hpp>
#include <exactile/scheduler/concepts.hpp>
#include <exactile/tensor.hpp>

namespace exactile::cuda {

/// Rows of the tallest tile that any plan has.
inline constexpr int kMaxBlockM = 192;

/// The bytes of a CUtensorMap.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

/// Element types, as template arguments of Traits. They carry bits.
struct Fp16 {
  unsigned short bits;
};
struct Bf16 {
  unsigned short bits;
};

/// Which blocks have to be masked. kBorder covers causal, windows and both: Mask says which.
/// kPacked covers any mask, and tiles that hold several sequences.
enum class MaskKind : unsigned char { kFull, kBorder, kPacked };
inline constexpr int kNumMaskKinds = 3;

/// What Timeline (probe.hpp) says of a tile, or of a work-group that found none: of that, begin and
/// end alone. Nanoseconds of one clock for the whole device; 0: never written.
struct alignas(16) TimelineRecord {
  int64_t prologue_ns;  ///< the work-group began, or was done with its previous tile
  int64_t mainloop_ns;  ///< the tile's Q is there (sm80: the tile is known)
  int64_t epilogue_ns;
  int64_t end_ns;  ///< its stores are under way
  TileRecord rows;
  int32_t head;  ///< WorkTile::head; -1: no tile
  int32_t work_group;
  int32_t multiprocessor;
  int32_t times_written;  ///< 1, or several work-groups had the same tile
};
static_assert(sizeof(TimelineRecord) == 64);

/// Passed by value as a __grid_constant__ kernel parameter.
struct PrefillParams {
  Tensor<const void*> q, k, v;
  Tensor<void*> out;
  float* lse;                  ///< (num_heads_q, total_q) natural logarithm, or null
  int64_t lse_head_stride;     ///< in elements: total_q
  int32_t group;               ///< query heads per kv head
  int32_t tile_heads;          ///< query heads in a tile: group with GQA packing, else 1
  int32_t tile_heads_inverse;  ///< ceil(2^16 / tile_heads): x / tile_heads is x * it >> 16, x < 256
  int32_t tile_tokens;         ///< tokens in a full tile: kBlockM, or kBlockM / group
  float scale_log2;            ///< softmax_scale * log2(e), > 0
  Mask mask;
  const int32_t* cu_seqlens_q;  ///< (batch + 1,), for kPacked
  const int32_t* cu_seqlens_k;  ///< (batch + 1,), for kPacked
  /// Of the Timeline probe, zeroed: one for every work-group, then (tile heads, total_q).
  TimelineRecord* timeline;
};

}  // namespace exactile::cuda
