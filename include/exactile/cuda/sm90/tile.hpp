// exactile/cuda/sm90/tile.hpp - where a tile's rows lie, and which keys they see.
#pragma once

#include <exactile/cuda/ptx.hpp>
#include <exactile/cuda/sm90/traits.hpp>

namespace exactile::cuda::sm90 {

/// Key blocks start at multiples of kBlockN from the sequence's first key whatever the tile.
struct BlockRange {
  int32_t begin;
  int32_t end;
};

/// Row `row` of a tile. With GQA packing the query heads of one token are neighbours; without it
/// tile_heads is 1.
struct TileRow {
  int32_t token;
  int32_t head;

  EXACTILE_DEVICE TileRow(const PrefillParams& params, const WorkTile& work, int32_t row)
      : token(work.rows.q_begin + row / params.tile_heads),
        head(work.head * params.tile_heads + row % params.tile_heads) {}
};

/// Blocks with a key that some row of the tile sees.
template <class Traits>
EXACTILE_DEVICE BlockRange visited_blocks(const PrefillParams& params, const TileRecord& rows) {
  if constexpr (Traits::kMask == MaskKind::kFull) {
    return {0, ceil_div(rows.k_len, Traits::kBlockN)};
  }
  const int32_t first = rows.q_end - rows.q_begin;  // rows to the end of the sequence
  const int32_t last = max(1, first - params.tile_tokens + 1);
  const KeyRange keys = params.mask.any_visible(first, last, rows.k_len);
  if (keys.empty()) return {0, 0};
  return {keys.begin / Traits::kBlockN, ceil_div(keys.end, Traits::kBlockN)};
}

/// Blocks that need no mask: every key is seen by all of the tile's rows [row, row + 64) that
/// exist. May be empty or the wrong way round.
template <class Traits>
EXACTILE_DEVICE BlockRange unmasked_blocks(const PrefillParams& params, const WorkTile& work,
                                           int32_t row) {
  const TileRecord& rows = work.rows;
  if constexpr (Traits::kMask == MaskKind::kFull) return {0, rows.k_len / Traits::kBlockN};
  const int32_t first = rows.q_end - TileRow(params, work, row).token;
  const int32_t last = rows.q_end - TileRow(params, work, row + 63).token;
  const KeyRange keys = params.mask.all_visible(max(1, first), max(1, last), rows.k_len);
  return {ceil_div(keys.begin, Traits::kBlockN), keys.end / Traits::kBlockN};
}

/// End of the keys that some of the tile's rows [row, row + 64) see.
template <class Traits>
EXACTILE_DEVICE int32_t visible_end(const PrefillParams& params, const WorkTile& work,
                                    int32_t row) {
  const TileRecord& rows = work.rows;
  if constexpr (Traits::kMask == MaskKind::kFull) return rows.k_len;
  const int32_t last = rows.q_end - TileRow(params, work, row + 63).token;
  return params.mask.visible(max(1, last), rows.k_len).end;
}

/// The keys that a thread's two rows, `row` and `row + 8`, see.
template <class Traits>
class RowMask {
 public:
  EXACTILE_DEVICE RowMask(const PrefillParams& params, const WorkTile& work, int32_t row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (Traits::kMask == MaskKind::kFull) {
        keys_[r] = {0, work.rows.k_len};
      } else {
        const int32_t token = TileRow(params, work, row + 8 * r).token;
        keys_[r] = params.mask.visible(work.rows.q_end - token, work.rows.k_len);
      }
    }
  }

  /// Sets the scores of keys that are not seen to -inf. `key`: that of the thread's first column.
  template <int kScores>
  EXACTILE_DEVICE void apply(float (&s)[kScores], int32_t key) const {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int r = i / 2 % 2;
      const int32_t at = key + i / 4 * 8 + i % 2;
      bool visible = at < keys_[r].end;
      if constexpr (Traits::kMask == MaskKind::kBorder) visible &= at >= keys_[r].begin;
      if (!visible) s[i] = -ptx::kInfinity;
    }
  }

 private:
  KeyRange keys_[2];
};

}  // namespace exactile::cuda::sm90
