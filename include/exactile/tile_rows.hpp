// exactile/tile_rows.hpp - where the rows of a tile lie in the tensors. Every backend's kernels.
#pragma once

#include <exactile/scheduler/concepts.hpp>
#include <exactile/tensor.hpp>

namespace exactile {

/// Row r of a tile is token r / heads, head r % heads: with GQA packing the query heads of one
/// token are neighbours, without it heads is 1.
struct TileRows {
  TileRecord record;
  int32_t tokens;
  int32_t heads;
  int32_t first_head;  ///< query head of row 0
  int32_t kv_head;

  /// Params: tile_tokens, tile_heads and group, as PrefillParams says them.
  template <class Params>
  EXACTILE_HOST_DEVICE TileRows(const Params& params, const WorkTile& tile)
      : record(tile.rows),
        tokens(tile.num_tokens(params.tile_tokens)),
        heads(params.tile_heads),
        first_head(tile.head * params.tile_heads),
        kv_head(first_head / params.group) {}

  EXACTILE_HOST_DEVICE int32_t rows() const { return tokens * heads; }
  EXACTILE_HOST_DEVICE int32_t token(int32_t row) const { return record.q_begin + row / heads; }
  EXACTILE_HOST_DEVICE int32_t head(int32_t row) const { return first_head + row % heads; }

  /// Rows from this one's token to the end of its sequence, as Mask counts them.
  EXACTILE_HOST_DEVICE int32_t rows_to_end(int32_t row) const { return record.q_end - token(row); }
  /// The row's own key, as Mask says it.
  EXACTILE_HOST_DEVICE int32_t position(int32_t row) const {
    return record.k_len - rows_to_end(row);
  }

  /// In elements.
  template <class Pointer>
  EXACTILE_HOST_DEVICE int64_t offset(const Tensor<Pointer>& tensor, int32_t row) const {
    return token(row) * tensor.token_stride + head(row) * tensor.head_stride;
  }
};

}  // namespace exactile
