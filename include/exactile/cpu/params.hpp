// exactile/cpu/params.hpp - what the CPU kernels are told. The same struct for every instruction
// set.
#pragma once

#include <exactile/mask.hpp>
#include <exactile/platform.hpp>
#include <exactile/tensor.hpp>

namespace exactile::cpu {

struct PrefillParams {
  Tensor<const void*> q, k, v;
  Tensor<void*> out;
  float* lse;               ///< (num_heads_q, total_q) natural logarithm, or null
  int64_t lse_head_stride;  ///< in elements
  int32_t head_dim;         ///< of q and k; a multiple of 16
  int32_t head_dim_v;       ///< of v and out; a multiple of 16
  int32_t group;            ///< query heads per kv head
  int32_t tile_heads;       ///< query heads in a tile: group with GQA packing, else 1
  int32_t tile_tokens;      ///< tokens in a full tile: kBlockM, or kBlockM / group
  int32_t max_len_k;        ///< keys of the longest sequence
  float scale_log2;         ///< softmax_scale * log2(e), > 0
  Mask mask;
  bool stream_out;  ///< write out past the caches; its rows are 64-byte aligned
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
