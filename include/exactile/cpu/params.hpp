// exactile/cpu/params.hpp - parameters of the CPU kernels, the same struct for every instruction
// set, and their tile sizes.
#pragma once

#include <exactile/params.hpp>

namespace exactile::cpu {

struct PrefillParams : CommonParams {
  int32_t head_dim;    ///< of q and k; a multiple of Scratch<Traits>::kHeadDimStep
  int32_t head_dim_v;  ///< of v and out; a multiple of Scratch<Traits>::kHeadDimVStep
  int32_t max_len_k;   ///< keys of the longest sequence
  bool stream_out;     ///< write out past the caches; its rows are 64-byte aligned
};

/// What a worker's copies of K and V hold: key blocks [n0, n1) of one sequence and head. It comes
/// first in a worker's memory, and the launch empties it, since a pointer's contents change between
/// launches.
struct Staged {
  int32_t k_begin, kv_head;
  int32_t n0 = 0, n1 = 0;
};

/// Rows of a full query tile (tokens x heads in the tile).
inline constexpr int32_t kBlockM = 128;
/// Keys of a block: what the online softmax takes at a time.
inline constexpr int32_t kBlockN = 64;

}  // namespace exactile::cpu
