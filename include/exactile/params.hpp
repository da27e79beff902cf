// exactile/params.hpp - kernel parameters that all backends share (host and device). A backend's
// PrefillParams derives from them and adds its own.
#pragma once

#include <exactile/kv_layout.hpp>
#include <exactile/mask.hpp>
#include <exactile/platform.hpp>
#include <exactile/scores.hpp>
#include <exactile/tensor.hpp>

namespace exactile {

struct CommonParams {
  Tensor<const void*> q;
  KvTensor k, v;
  Tensor<void*> out;
  float* lse;                  ///< (num_heads_q, total_q) natural logarithm, or null
  int64_t lse_head_stride;     ///< in elements
  int32_t group;               ///< query heads per kv head
  int32_t tile_heads;          ///< query heads in a tile: group with GQA packing, else 1
  int32_t tile_heads_inverse;  ///< ceil(2^16 / tile_heads): x / tile_heads is x * it >> 16, x < 256
  int32_t tile_tokens;         ///< tokens in a full tile: kBlockM, or kBlockM / group
  float scale_log2;            ///< softmax_scale * log2(e), > 0
  Mask mask;
  ScoreParams scores = {};  ///< of other variants than PlainScores
  PageTable pages = {};     ///< of PagedKv
};

}  // namespace exactile
