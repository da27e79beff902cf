// tests/cpp/static_schedulers.cpp - the policies run at compile time. Constant evaluation also
// rejects every signed overflow, read outside an array and read of an unset value.
#include "coverage.hpp"

namespace exactile::test {

constexpr bool covers(const Shape& shape) {
  return !individual_error(shape) && !valid_only_error(shape, ListOrder::kNatural, 3) &&
         !valid_only_error(shape, ListOrder::kLongestFirst, 3) &&
         !valid_only_error(shape, ListOrder::kSequenceMajor, 3) &&
         !valid_only_error(shape, ListOrder::kHeadMajor, 3);
}

constexpr Mask kCausal{.left = -1, .right = 0};
constexpr Mask kWindow{.left = 2, .right = 1};

static_assert(covers({}));
static_assert(covers({.batch = 1, .len_q = {0}, .len_k = {5}}));
static_assert(covers({.batch = 1, .len_q = {1}, .len_k = {0}, .tile_tokens = 4}));
static_assert(covers({.batch = 2,
                      .len_q = {3, 4},
                      .len_k = {4, 3},
                      .num_heads = 2,
                      .tile_tokens = 4,
                      .block_n = 2,
                      .mask = kCausal}));
static_assert(covers({.batch = 3,
                      .len_q = {5, 0, 12},
                      .len_k = {5, 7, 12},
                      .num_heads = 3,
                      .tile_tokens = 4,
                      .block_n = 2,
                      .mask = kCausal}));
static_assert(covers({.batch = 3,
                      .len_q = {7, 1, 3},
                      .len_k = {9, 0, 1},
                      .num_heads = 2,
                      .tile_tokens = 2,
                      .block_n = 3,
                      .mask = kWindow}));

// The largest lengths there are, a tile or two each.
static_assert(covers({.batch = 1,
                      .len_q = {2147483647},
                      .len_k = {2147483647},
                      .num_heads = 2,
                      .tile_tokens = 2147483647,
                      .block_n = 32768,
                      .mask = kCausal}));
static_assert(covers({.batch = 2,
                      .len_q = {2147483646, 1},
                      .len_k = {1, 2147483646},
                      .tile_tokens = 1073741824,
                      .block_n = 1073741824,
                      .mask = kWindow}));

// The walk finds what it is there to find: a tile that is seen twice, one that is not seen.
constexpr bool finds_faults() {
  const Shape shape{.batch = 1, .len_q = {2}, .len_k = {2}};
  const CuSeqlens cu(shape);
  const WorkTile first{.rows = {.q_begin = 0, .q_end = 2, .k_begin = 0, .k_len = 2}, .head = 0};
  Tally tally(shape, cu);
  return tally.num_tiles() == 2 && !tally.add(first) && tally.missing() && tally.add(first);
}
static_assert(finds_faults());

}  // namespace exactile::test
