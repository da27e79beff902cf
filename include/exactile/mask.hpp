// exactile/mask.hpp - which keys a query row sees.
//
// Full, causal and sliding-window attention are one rule: query row i of a sequence stands at key
// position p = i + (len_k - len_q) (bottom-right alignment) and sees the keys
// [p - left, p + right] that exist. A side that is unbounded is -1.
#pragma once

#include <exactile/platform.hpp>

namespace exactile {

/// Half-open range of key positions within one sequence.
struct KeyRange {
  int32_t begin;
  int32_t end;

  EXACTILE_HOST_DEVICE constexpr bool empty() const { return begin >= end; }
};

/// Half-open range of key blocks, which begin at multiples of their size from the sequence's first
/// key whatever the tile: so a row's result does not depend on the tile that it is in.
struct BlockRange {
  int32_t begin;
  int32_t end;
};

/// Blocks with some of the keys.
EXACTILE_HOST_DEVICE constexpr BlockRange blocks_with(KeyRange keys, int32_t block_n) {
  if (keys.empty()) return {0, 0};
  return {keys.begin / block_n, ceil_div(keys.end, block_n)};
}

/// Blocks with no other keys. Where there are none, begin >= end.
EXACTILE_HOST_DEVICE constexpr BlockRange blocks_within(KeyRange keys, int32_t block_n) {
  return {ceil_div(keys.begin, block_n), keys.end / block_n};
}

struct Mask {
  int32_t left = -1;   ///< keys visible before the row's own position; -1: all
  int32_t right = -1;  ///< keys visible after it; -1: all, 0: causal

  /// Keys seen by the row that stands `rows_to_end` rows before the end of its sequence's queries
  /// (1 for the last row).
  EXACTILE_HOST_DEVICE constexpr KeyRange visible(int32_t rows_to_end, int32_t len_k) const {
    const int64_t position = int64_t{len_k} - rows_to_end;
    const int64_t begin = left < 0 ? 0 : max(int64_t{0}, position - left);
    const int64_t end = right < 0 ? len_k : min(int64_t{len_k}, position + right + 1);
    return {static_cast<int32_t>(min(begin, int64_t{len_k})),
            static_cast<int32_t>(max(end, int64_t{0}))};
  }

  /// Keys seen by at least one of the rows [first, last] (counted as rows_to_end, first >= last).
  EXACTILE_HOST_DEVICE constexpr KeyRange any_visible(int32_t first, int32_t last,
                                                      int32_t len_k) const {
    return {visible(first, len_k).begin, visible(last, len_k).end};
  }

  /// Keys seen by every one of the rows [first, last]; outside it a block is masked per element.
  EXACTILE_HOST_DEVICE constexpr KeyRange all_visible(int32_t first, int32_t last,
                                                      int32_t len_k) const {
    return {visible(last, len_k).begin, visible(first, len_k).end};
  }
};

/// Number of visible (query, key) pairs of one sequence, in closed form.
EXACTILE_HOST_DEVICE constexpr int64_t visible_pairs(Mask mask, int32_t len_q, int32_t len_k) {
  // Sum over i in [0, len_q) of clamp(first + i, 0, len_k).
  auto sum_clamped = [len_q, len_k](int64_t first) {
    const int64_t ramp_begin = min(max(-first, int64_t{0}), int64_t{len_q});
    const int64_t ramp_end = min(max(len_k - first, int64_t{0}), int64_t{len_q});
    const int64_t n = ramp_end - ramp_begin;
    const int64_t twice_mean = 2 * first + ramp_begin + ramp_end - 1;
    return n * twice_mean / 2 + (len_q - ramp_end) * len_k;
  };
  const int64_t position = int64_t{len_k} - len_q;
  const int64_t ends =
      mask.right < 0 ? int64_t{len_q} * len_k : sum_clamped(position + mask.right + 1);
  const int64_t begins = mask.left < 0 ? 0 : sum_clamped(position - mask.left);
  return ends - begins;
}

static_assert(visible_pairs({}, 3, 5) == 15);
static_assert(visible_pairs({.left = -1, .right = 0}, 3, 5) == 12);
static_assert(visible_pairs({.left = -1, .right = 0}, 5, 3) == 6);
static_assert(visible_pairs({.left = 1, .right = 0}, 4, 4) == 7);

}  // namespace exactile
