// exactile/cuda/params.hpp - parameters of the CUDA kernels. Shared by host (g++) and device
// (NVRTC, nvcc).
#pragma once

#include <exactile/element.hpp>
#include <exactile/key_splits.hpp>
#include <exactile/params.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile::cuda {

/// Rows of the tallest tile that any plan has.
inline constexpr int kMaxBlockM = 192;

/// The bytes of a CUtensorMap.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

/// Which blocks have to be masked. kMasked covers causal, windows and both: Mask says which.
/// kPacked covers any mask, and tiles that hold several sequences.
enum class MaskKind : unsigned char { kFull, kMasked, kPacked };
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
struct PrefillParams : CommonParams {
  const int32_t* cu_seqlens_q;  ///< (batch + 1,), for kPacked
  const int32_t* cu_seqlens_k;  ///< (batch + 1,), for kPacked
  /// Of the Timeline probe, zeroed: one for every work-group, then (tile heads, total_q).
  TimelineRecord* timeline;
  int32_t page_box;  ///< of PagedKv: keys in a TMA box, which divides a page and a block
};

/// Of SplitKeys; others' kernels are not told.
struct SplitPrefillParams : PrefillParams {
  SplitParams split;
};
template <class Keys>
struct ParamsOfKeys {
  using Type = PrefillParams;
};
template <>
struct ParamsOfKeys<SplitKeys> {
  using Type = SplitPrefillParams;
};

}  // namespace exactile::cuda
