// exactile/key_splits.hpp - split-KV: the keys of a tile shared out among several work-groups,
// whose results are merged (cuda/merge_splits.hpp). Shared by host and device.
//
// A kernel's Traits name one of two: WholeKeys, which is nothing at all, or SplitKeys. With
// SplitKeys a list has a record for each part of a tile, whose TileRecord::k_begin is the number of
// a KeySplit; and a part's result goes to the partial results.
#pragma once

#include <exactile/mask.hpp>
#include <exactile/platform.hpp>
#include <exactile/scheduler/concepts.hpp>
#include <exactile/scores.hpp>
#include <exactile/tensor.hpp>

namespace exactile {

/// A part of a tile's keys. Of a tile that is not split: all of them.
struct alignas(16) KeySplit {
  int32_t k_begin;    ///< what TileRecord::k_begin is without splits
  int32_t first_key;  ///< of the sequence
  int32_t end_key;    ///< > first_key; of a last part past all keys
  /// Row of the partial results for row 0 of the tile's first head; those of its other rows, then
  /// of the other heads, follow. -1: the result is whole, and is written to `out`.
  int32_t first_row;
};

/// Merged rows: a tile that is split, all heads.
struct alignas(16) SplitTile {
  int32_t q_begin;      ///< first token
  int32_t rows_before;  ///< merged rows of the tiles before: tokens times query heads
  int32_t first_row;    ///< partial results of its first part; those of the others follow
  int32_t num_parts;
};

/// How far a row's softmax has come: the sum of its exponentials, relative to 2^(reference *
/// scale_log2). -inf and 0 where it saw no key.
struct alignas(8) RowState {
  float reference, sum;
};

/// Where partial results lie.
struct PartialResults {
  float* out;      ///< (partial rows, head_dim_v), not yet divided by the sum
  RowState* rows;  ///< (partial rows,)
};

/// What kernels with SplitKeys are told.
struct SplitParams {
  const KeySplit* splits = nullptr;
  PartialResults partial = {};
};

/// A tile's keys are all its own.
struct WholeKeys {
  static constexpr bool kSplits = false;

  WholeKeys() = default;
  template <class Params>
  EXACTILE_HOST_DEVICE constexpr WholeKeys(const Params&, WorkTile&) {}
  EXACTILE_HOST_DEVICE constexpr BlockRange within(BlockRange blocks, int32_t) const {
    return blocks;
  }
};

/// What of a tile's keys is its work-group's.
class SplitKeys {
 public:
  static constexpr bool kSplits = true;

  SplitKeys() = default;
  /// Puts the tile's record right. Params: CommonParams, and SplitParams as `split`.
  template <class Params>
  EXACTILE_HOST_DEVICE constexpr SplitKeys(const Params& params, WorkTile& tile)
      : split_(params.split.splits[tile.rows.k_begin]), q_begin_(tile.rows.q_begin) {
    tile.rows.k_begin = split_.k_begin;
    if (is_part()) {
      split_.first_row += tile.head * params.tile_heads * tile.num_tokens(params.tile_tokens);
    }
  }

  EXACTILE_HOST_DEVICE constexpr bool is_part() const { return split_.first_row >= 0; }

  /// Of the partial results, for the first of a token's rows in the tile.
  EXACTILE_HOST_DEVICE constexpr int64_t row_of(int32_t token, int32_t tile_heads) const {
    return split_.first_row + int64_t{token - q_begin_} * tile_heads;
  }

  /// Those of the blocks that are the part's, by rows of `block_n` keys: whatever that is, no block
  /// is of two parts.
  EXACTILE_HOST_DEVICE constexpr BlockRange within(BlockRange blocks, int32_t block_n) const {
    const int32_t begin = max(blocks.begin, ceil_div(split_.first_key, block_n));
    return {begin, max(begin, min(blocks.end, ceil_div(split_.end_key, block_n)))};
  }

 private:
  KeySplit split_;
  int32_t q_begin_;  // of the tile
};

/// What the merge of split tiles is told.
struct SplitMergeParams {
  const SplitTile* tiles;
  int32_t num_tiles;
  int32_t num_rows;    ///< merged rows of all tiles
  int32_t num_heads;   ///< query heads
  int32_t tile_heads;  ///< query heads in a tile
  int32_t head_dim_v;
  float scale_log2;  ///< of CommonParams
  ScoreParams scores;
  PartialResults partial;
  Tensor<void*> out;
  float* lse;  ///< (num_heads, lse_head_stride), or null
  int64_t lse_head_stride;
};

/// A merged row: where it belongs, and where its parts lie.
struct SplitRow {
  int32_t token, head;
  int32_t num_parts;
  int64_t first;   ///< its row of the partial results in the first part
  int64_t stride;  ///< from part to part

  EXACTILE_HOST_DEVICE SplitRow(const SplitMergeParams& params, int32_t index) {
    int32_t at = 0;
    for (int32_t last = params.num_tiles - 1; at < last;) {
      const int32_t middle = (at + last + 1) / 2;
      if (params.tiles[middle].rows_before <= index) {
        at = middle;
      } else {
        last = middle - 1;
      }
    }
    const SplitTile tile = params.tiles[at];
    const int32_t end =
        at + 1 < params.num_tiles ? params.tiles[at + 1].rows_before : params.num_rows;
    const int32_t rows = end - tile.rows_before, row = index - tile.rows_before;
    const int32_t rows_of_head = rows / (params.num_heads / params.tile_heads);
    const int32_t tile_head = row / rows_of_head, in_tile = row % rows_of_head;
    token = tile.q_begin + in_tile / params.tile_heads;
    head = tile_head * params.tile_heads + in_tile % params.tile_heads;
    num_parts = tile.num_parts;
    first = tile.first_row + row;
    stride = rows;
  }
};

/// The softmax of a row over all parts, in their order: the same bits whoever computed them when.
template <class Math>
class MergedState {
 public:
  EXACTILE_HOST_DEVICE MergedState(const SplitMergeParams& params, const SplitRow& row)
      : parts_(params.partial.rows + row.first),
        stride_(row.stride),
        scale_log2_(params.scale_log2) {
    for (int32_t i = 0; i < row.num_parts; ++i) {
      reference_ = max(reference_, parts_[i * stride_].reference);
    }
    for (int32_t i = 0; i < row.num_parts; ++i) {
      sum_ += weight(i) * parts_[i * stride_].sum;
    }
  }

  EXACTILE_HOST_DEVICE float reference() const { return reference_; }
  EXACTILE_HOST_DEVICE float sum() const { return sum_; }

  /// What a part's exponentials are multiplied by; exactly 1 for a largest reference, 0 for a part
  /// that saw no key.
  EXACTILE_HOST_DEVICE float weight(int32_t i) const {
    const float reference = parts_[i * stride_].reference;
    if (reference == reference_) return reference == -kInfinity ? 0.0f : 1.0f;
    return Math::exp2((reference - reference_) * scale_log2_);
  }

 private:
  const RowState* const parts_;
  const int64_t stride_;
  const float scale_log2_;
  float reference_ = -kInfinity, sum_ = 0;
};

}  // namespace exactile
