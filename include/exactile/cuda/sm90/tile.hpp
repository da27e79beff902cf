// exactile/cuda/sm90/tile.hpp - where a tile's rows lie, and which keys they see.
#pragma once

#include <exactile/cuda/ptx.hpp>
#include <exactile/cuda/sm90/traits.hpp>

namespace exactile::cuda::sm90 {

/// Row `row` of a tile, row < 256. With GQA packing the query heads of one token are neighbours;
/// without it tile_heads is 1.
struct TileRow {
  int32_t token;
  int32_t head;

  EXACTILE_DEVICE TileRow(const PrefillParams& params, const WorkTile& work, int32_t row)
      : TileRow(params, work, row, row * params.tile_heads_inverse >> 16) {}

 private:
  EXACTILE_DEVICE TileRow(const PrefillParams& params, const WorkTile& work, int32_t row,
                          int32_t token_of_tile)
      : token(work.rows.q_begin + token_of_tile),
        head(work.head * params.tile_heads + row - token_of_tile * params.tile_heads) {}
};

/// The tile holds several sequences.
template <class Traits>
EXACTILE_DEVICE bool is_packed(const TileRecord& rows) {
  return Traits::kMask == MaskKind::kPacked && rows.is_packed();
}

/// Keys of the tile's sequences.
template <class Traits>
EXACTILE_DEVICE int32_t num_keys(const TileRecord& rows) {
  return is_packed<Traits>(rows) ? rows.packed_keys() : rows.k_len;
}

/// Rows of the tile that exist: those after them are of other tiles, or of none.
template <class Traits>
EXACTILE_DEVICE int32_t num_rows(const PrefillParams& params, const TileRecord& rows) {
  const int32_t tokens = is_packed<Traits>(rows) ? rows.packed_tokens() : rows.q_end - rows.q_begin;
  return min(tokens, params.tile_tokens) * params.tile_heads;
}

/// Blocks with a key that some row of the tile sees.
template <class Traits>
EXACTILE_DEVICE BlockRange visited_blocks(const PrefillParams& params, const TileRecord& rows) {
  if (is_packed<Traits>(rows)) return {0, ceil_div(rows.packed_keys(), Traits::kBlockN)};
  if constexpr (Traits::kMask == MaskKind::kFull) {
    return {0, ceil_div(rows.k_len, Traits::kBlockN)};
  }
  const int32_t first = rows.q_end - rows.q_begin;  // rows to the end of the sequence
  const int32_t last = max(1, first - params.tile_tokens + 1);
  return blocks_with(params.mask.any_visible(first, last, rows.k_len), Traits::kBlockN);
}

/// Blocks that need no mask: every key is seen by all of the tile's rows [row, row + 64) that
/// exist.
template <class Traits>
EXACTILE_DEVICE BlockRange unmasked_blocks(const PrefillParams& params, const WorkTile& work,
                                           int32_t row) {
  const TileRecord& rows = work.rows;
  if constexpr (Traits::kMask == MaskKind::kFull) return {0, rows.k_len / Traits::kBlockN};
  if (is_packed<Traits>(rows)) return {0, 0};
  const int32_t first = rows.q_end - TileRow(params, work, row).token;
  const int32_t last = rows.q_end - TileRow(params, work, row + 63).token;
  const KeyRange keys = params.mask.all_visible(max(1, first), max(1, last), rows.k_len);
  return blocks_within(keys, Traits::kBlockN);
}

/// End of the keys that some of the tile's rows [row, row + 64) see.
template <class Traits>
EXACTILE_DEVICE int32_t visible_end(const PrefillParams& params, const WorkTile& work,
                                    int32_t row) {
  const TileRecord& rows = work.rows;
  if (Traits::kMask == MaskKind::kFull || is_packed<Traits>(rows)) return num_keys<Traits>(rows);
  const int32_t last = rows.q_end - TileRow(params, work, row + 63).token;
  return params.mask.visible(max(1, last), rows.k_len).end;
}

/// Of a tile of several sequences: the one that a token of the tile belongs to.
EXACTILE_DEVICE int32_t sequence_of_token(const PrefillParams& params, const TileRecord& rows,
                                          int32_t token) {
  int32_t b = rows.first_sequence();
  while (params.cu_seqlens_q[b + 1] <= token) ++b;
  return b;
}

/// Of a tile of several sequences: the keys that a token of one of them sees, counted from the
/// first key of the first. Tokens past the tile's see those of its last.
EXACTILE_DEVICE KeyRange keys_of_token(const PrefillParams& params, const TileRecord& rows,
                                       int32_t token) {
  token = min(token, rows.q_begin + rows.packed_tokens() - 1);
  const int32_t b = sequence_of_token(params, rows, token);
  const int32_t k_begin = params.cu_seqlens_k[b];
  const KeyRange keys =
      params.mask.visible(params.cu_seqlens_q[b + 1] - token, params.cu_seqlens_k[b + 1] - k_begin);
  const int32_t offset = k_begin - rows.k_begin;
  return {keys.begin + offset, keys.end + offset};
}

/// What a thread's two rows, `row` and `row + 8`, make of their scores.
template <class Traits, class Scores = typename Traits::Scores>
class RowScores {
 public:
  RowScores() = default;

  EXACTILE_DEVICE RowScores(const PrefillParams& params, const WorkTile& work, int32_t row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const TileRow at(params, work, row + 8 * r);
      const int32_t token = min(at.token, last_token(params, work.rows));
      slope_[r] = Scores::slope(params.scores, token, at.head);
      position_[r] = position(params, work.rows, token);
    }
  }

  /// `key`: that of the thread's first column.
  template <int kScores>
  EXACTILE_DEVICE void apply(const PrefillParams& params, float (&s)[kScores], int32_t key) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto first = static_cast<float>(key - position_[r]);
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        float& score = s[i / 2 * 4 + r * 2 + i % 2];
        const float distance = fabsf(first + static_cast<float>(i / 2 * 8 + i % 2));
        score = Scores::template change<ptx::Math>(params.scores, score, slope_[r], distance);
      }
    }
  }

 private:
  EXACTILE_DEVICE static int32_t last_token(const PrefillParams& params, const TileRecord& rows) {
    return rows.q_begin + num_rows<Traits>(params, rows) / params.tile_heads - 1;
  }

  /// Of a token among its tile's keys.
  EXACTILE_DEVICE static int32_t position(const PrefillParams& params, const TileRecord& rows,
                                          int32_t token) {
    if (!is_packed<Traits>(rows)) return rows.k_len - (rows.q_end - token);
    const int32_t b = sequence_of_token(params, rows, token);
    return params.cu_seqlens_k[b + 1] - rows.k_begin - (params.cu_seqlens_q[b + 1] - token);
  }

  float slope_[2];
  int32_t position_[2];
};

/// Nothing.
template <class Traits, class Scores>
  requires(!Scores::kChanges)
class RowScores<Traits, Scores> {
 public:
  RowScores() = default;
  EXACTILE_DEVICE RowScores(const PrefillParams&, const WorkTile&, int32_t) {}
  template <int kScores>
  EXACTILE_DEVICE void apply(const PrefillParams&, float (&)[kScores], int32_t) const {}
};

/// The keys that a thread's two rows, `row` and `row + 8`, see.
template <class Traits>
class RowMask {
 public:
  RowMask() = default;

  /// keys_of_tokens: of a tile of several sequences.
  EXACTILE_DEVICE RowMask(const PrefillParams& params, const WorkTile& work, int32_t row,
                          const KeyRange* keys_of_tokens) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t token = TileRow(params, work, row + 8 * r).token;
      if constexpr (Traits::kMask == MaskKind::kFull) {
        keys_[r] = {0, work.rows.k_len};
      } else if (is_packed<Traits>(work.rows)) {
        keys_[r] = keys_of_tokens[min(token - work.rows.q_begin, params.tile_tokens - 1)];
      } else {
        keys_[r] = params.mask.visible(work.rows.q_end - token, work.rows.k_len);
      }
    }
  }

  /// Whether row `row + 8 * r` sees a key.
  EXACTILE_DEVICE bool sees(int r, int32_t key) const {
    return keys_[r].begin <= key && key < keys_[r].end;
  }

  /// Sets the scores of keys that are not seen to -inf. `key`: that of the thread's first column.
  template <int kScores>
  EXACTILE_DEVICE void apply(float (&s)[kScores], int32_t key) const {
    constexpr int kWords = ceil_div(kScores, 64);
    ptx::uint32_t seen[2][kWords];  // a bit per score of a row
    bool all = true;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const int32_t first = key + 128 * i;
        seen[r][i] = scores_before(keys_[r].end - first) & ~scores_before(keys_[r].begin - first);
        all &= (~seen[r][i] & ptx::low_bits(kScores / 2 - 32 * i)) == 0;
      }
    }
    if (__all_sync(~0u, all)) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const bool sees = seen[r][i / 32] >> i % 32 & 1;
        if (!sees) s[i / 2 * 4 + r * 2 + i % 2] = -kInfinity;
      }
    }
  }

 private:
  /// Of 32 scores of a row, which are of two keys in every eight, those of the first `keys` keys.
  EXACTILE_DEVICE static ptx::uint32_t scores_before(int32_t keys) {
    return ptx::low_bits(max(0, (keys >> 3) * 2 + min(keys & 7, 2)));
  }

  KeyRange keys_[2];
};

}  // namespace exactile::cuda::sm90
