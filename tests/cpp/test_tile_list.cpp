// tests/cpp/test_tile_list.cpp - the compact list: what it holds and in which order, against a
// stable sort by costs that are counted key by key.
#include <algorithm>
#include <exactile/scheduler/individual.hpp>
#include <exactile/scheduler/tile_list.hpp>
#include <ostream>
#include <vector>

#include "check.hpp"

namespace exactile {

static bool operator==(const TileRecord& a, const TileRecord& b) {
  return a.q_begin == b.q_begin && a.q_end == b.q_end && a.k_begin == b.k_begin &&
         a.k_len == b.k_len;
}

namespace test {
namespace {

constexpr int32_t kInt32Max = 2147483647;

/// A batch with its cu_seqlens; spec() points into it.
struct Batch {
  std::vector<int32_t> len_q, len_k;
  int32_t tile_tokens, block_n;
  Mask mask;
  std::vector<int32_t> cu_q = {0}, cu_k = {0};

  Batch(std::vector<int32_t> lengths_q, std::vector<int32_t> lengths_k, int32_t tokens,
        int32_t keys, Mask window)
      : len_q(std::move(lengths_q)),
        len_k(std::move(lengths_k)),
        tile_tokens(tokens),
        block_n(keys),
        mask(window) {
    for (const int32_t length : len_q) cu_q.push_back(cu_q.back() + length);
    for (const int32_t length : len_k) cu_k.push_back(cu_k.back() + length);
  }

  TileListSpec spec() const {
    return {.cu_seqlens_q = cu_q.data(),
            .cu_seqlens_k = cu_k.data(),
            .batch = static_cast<int32_t>(len_q.size()),
            .tile_tokens = tile_tokens,
            .block_n = block_n,
            .mask = mask};
  }
};

std::ostream& operator<<(std::ostream& out, const Batch& batch) {
  out << "len_q";
  for (const int32_t length : batch.len_q) out << ' ' << length;
  out << ", len_k";
  for (const int32_t length : batch.len_k) out << ' ' << length;
  return out << ", tile_tokens " << batch.tile_tokens << ", block_n " << batch.block_n << ", mask "
             << batch.mask.left << ' ' << batch.mask.right;
}

std::vector<TileRecord> expected_natural(const Batch& batch) {
  std::vector<TileRecord> records;
  for (std::size_t b = 0; b < batch.len_q.size(); ++b) {
    for (int32_t token = 0; token < batch.len_q[b]; token += batch.tile_tokens) {
      records.push_back({.q_begin = batch.cu_q[b] + token,
                         .q_end = batch.cu_q[b + 1],
                         .k_begin = batch.cu_k[b],
                         .k_len = batch.len_k[b]});
    }
  }
  return records;
}

/// Key blocks with at least one key that at least one row of the tile sees.
int32_t expected_cost(const Batch& batch, const TileRecord& tile) {
  const int32_t tokens = std::min(batch.tile_tokens, tile.q_end - tile.q_begin);
  int32_t cost = 0;
  for (int32_t block = 0; block < tile.k_len; block += batch.block_n) {
    bool visited = false;
    for (int32_t row = 0; row < tokens; ++row) {
      const int32_t position = tile.k_len - (tile.q_end - tile.q_begin - row);
      for (int32_t key = block; key < std::min(tile.k_len, block + batch.block_n); ++key) {
        visited |= (batch.mask.left < 0 || key >= position - batch.mask.left) &&
                   (batch.mask.right < 0 || key <= position + batch.mask.right);
      }
    }
    cost += visited;
  }
  return cost;
}

/// What write_tiles and write_sorted_tiles wrote, checked not to have written elsewhere.
std::vector<TileRecord> written(const Batch& batch, ListOrder order) {
  constexpr TileRecord kPoison{.q_begin = -1, .q_end = -2, .k_begin = -3, .k_len = -4};
  constexpr int32_t kPoisonScratch = 0x7f7f7f7f;
  const auto n = static_cast<std::size_t>(count_tiles(batch.spec()));
  std::vector<TileRecord> records(n + 1, kPoison);
  if (order == ListOrder::kNatural) {
    write_tiles(batch.spec(), records.data());
  } else {
    std::vector<TileRecord> natural(n + 1, kPoison);
    std::vector<int32_t> cost(n + 1, kPoisonScratch), start(kMaxCost + 2, kPoisonScratch);
    write_sorted_tiles(batch.spec(), order, records.data(),
                       {.natural = natural.data(), .cost = cost.data(), .start = start.data()});
    EXACTILE_CHECK(natural.back() == kPoison, batch);
    EXACTILE_CHECK(cost.back() == kPoisonScratch && start.back() == kPoisonScratch, batch);
  }
  EXACTILE_CHECK(records.back() == kPoison, batch);
  records.pop_back();
  return records;
}

/// `cost` is a function of a tile. The order wanted is that of a stable sort, most costly first,
/// where costs above kMaxCost count as equal.
template <class Cost>
void check_lists(const Batch& batch, Cost cost) {
  std::vector<TileRecord> expected = expected_natural(batch);
  EXACTILE_CHECK(written(batch, ListOrder::kNatural) == expected, "natural, " << batch);
  for (const TileRecord& tile : expected) {
    EXACTILE_CHECK(num_n_blocks(batch.spec(), tile) == cost(tile),
                   "row " << tile.q_begin << ", " << batch);
  }
  std::stable_sort(expected.begin(), expected.end(), [&](const TileRecord& a, const TileRecord& b) {
    return std::min(cost(a), kMaxCost) > std::min(cost(b), kMaxCost);
  });
  EXACTILE_CHECK(written(batch, ListOrder::kLongestFirst) == expected, "longest first, " << batch);
}

/// Tiles from last to first, sorted by what the last row of their sequence visits.
void check_sequence_major(const Batch& batch) {
  std::vector<TileRecord> expected = expected_natural(batch);
  std::reverse(expected.begin(), expected.end());
  const auto cost = [&](TileRecord tile) {
    tile.q_begin = tile.q_end - 1;
    return expected_cost(batch, tile);
  };
  std::stable_sort(expected.begin(), expected.end(),
                   [&](const TileRecord& a, const TileRecord& b) { return cost(a) > cost(b); });
  for (const ListOrder order : {ListOrder::kSequenceMajor, ListOrder::kHeadMajor}) {
    EXACTILE_CHECK(written(batch, order) == expected, "sequence-major, " << batch);
  }
}

void check_small() {
  const std::vector<std::vector<int32_t>> lengths = {
      {}, {0}, {1}, {9}, {0, 0}, {7, 12}, {12, 7}, {3, 0, 11}, {1, 16, 1}, {5, 5, 5}, {2, 30, 8}};
  const Mask masks[] = {{},
                        {.left = -1, .right = 0},
                        {.left = 3, .right = 0},
                        {.left = 0, .right = -1},
                        {.left = 2, .right = 4},
                        {.left = 0, .right = 0}};
  for (const auto& len_q : lengths) {
    for (const auto& len_k : lengths) {
      if (len_q.size() != len_k.size()) continue;
      for (const Mask mask : masks) {
        for (const int32_t tile_tokens : {1, 3, 4, 100}) {
          for (const int32_t block_n : {1, 2, 5}) {
            const Batch batch(len_q, len_k, tile_tokens, block_n, mask);
            check_lists(batch, [&](const TileRecord& tile) { return expected_cost(batch, tile); });
            check_sequence_major(batch);
          }
        }
      }
    }
  }
}

/// Costs about and beyond kMaxCost, up to all keys that cu_seqlens can count.
void check_clamp() {
  const int32_t rest = kInt32Max - (kMaxCost - 1) - kMaxCost - (kMaxCost + 1) - 100000 - 3;
  const Batch full({1, 1, 2, 1, 1, 1}, {3, kMaxCost - 1, kMaxCost + 1, kMaxCost, rest, 100000}, 1,
                   1, {});
  check_lists(full, [](const TileRecord& tile) { return tile.k_len; });
  const Batch coarse({1, 5, 1}, {0, kInt32Max - 1, 1}, 2, 32768, {});
  check_lists(coarse, [](const TileRecord& tile) { return tile.k_len / 32768 + (tile.k_len > 0); });
  const Batch window({7, 2}, {kInt32Max - 2, 2}, 1, 1, {.left = 80000, .right = 0});
  check_lists(window, [](const TileRecord& tile) {
    return tile.k_len == 2 ? 2 - (tile.q_end - tile.q_begin) + 1 : 80001;
  });
}

/// The heads of a record follow one another, or one head is after the other.
void check_heads() {
  const TileRecord records[] = {{.q_begin = 4, .q_end = 8, .k_begin = 4, .k_len = 4},
                                {.q_begin = 0, .q_end = 4, .k_begin = 0, .k_len = 4},
                                {.q_begin = 8, .q_end = 9, .k_begin = 8, .k_len = 1}};
  for (const bool head_major : {false, true}) {
    const CompactList list{
        .records = records, .num_records = 3, .num_heads = 2, .head_major = head_major};
    EXACTILE_CHECK(list.num_tiles() == 6, list.num_tiles());
    for (int32_t i = 0; i < 6; ++i) {
      const WorkTile tile = list.tile(i);
      EXACTILE_CHECK(tile.head == (head_major ? i / 3 : i % 2), "index " << i);
      EXACTILE_CHECK(tile.rows == records[head_major ? i % 3 : i / 2], "index " << i);
    }
  }
}

/// The longest list there is: a record for every token that cu_seqlens can count.
void check_count() {
  const Batch batch({kInt32Max - 1, 0, 1}, {0, 0, 0}, 1, 1, {});
  EXACTILE_CHECK(count_tiles(batch.spec()) == kInt32Max, count_tiles(batch.spec()));
}

/// Sequences of which only some rows and keys count, with keys one after the other or in pages:
/// list and padded grid hold the tiles of what counts, within cu_seqlens whatever seqused says.
void check_used() {
  const std::vector<int32_t> cu_q{0, 5, 5, 14, 21}, cu_k{0, 8, 11, 30, 32};
  const std::vector<int32_t> used_q{3, 0, 99, -1}, used_k{8, 2, 0, 99};
  const std::vector<int32_t> rows{3, 0, 9, 0}, keys{8, 2, 0, 2};
  constexpr int32_t kTileTokens = 4;
  for (const bool in_pages : {false, true}) {
    std::vector<TileRecord> expected;
    for (int32_t b = 0; b < 4; ++b) {
      for (int32_t row = 0; row < rows[b]; row += kTileTokens) {
        expected.push_back({cu_q[b] + row, cu_q[b] + rows[b], in_pages ? b : cu_k[b],
                            in_pages ? max(0, used_k[b]) : keys[b]});
      }
    }
    const TileListSpec spec{.cu_seqlens_q = cu_q.data(),
                            .cu_seqlens_k = in_pages ? nullptr : cu_k.data(),
                            .batch = 4,
                            .tile_tokens = kTileTokens,
                            .block_n = 2,
                            .mask = {},
                            .seqused_q = used_q.data(),
                            .seqused_k = used_k.data()};
    std::vector<TileRecord> listed;
    for_each_tile(spec, [&](const TileRecord& tile) { listed.push_back(tile); });
    EXACTILE_CHECK(listed == expected, "in_pages " << in_pages);
    EXACTILE_CHECK(count_tiles(spec) == static_cast<int64_t>(expected.size()), in_pages);
    const PaddedGrid grid{.cu_seqlens_q = spec.cu_seqlens_q,
                          .cu_seqlens_k = spec.cu_seqlens_k,
                          .batch = 4,
                          .num_heads = 1,
                          .max_m_blocks = 3,
                          .tile_tokens = kTileTokens,
                          .seqused_q = used_q.data(),
                          .seqused_k = used_k.data()};
    std::vector<TileRecord> in_grid;
    for (int32_t i = 0; i < grid.num_tiles(); ++i) {
      const WorkTile tile = grid.tile(i);
      if (tile.num_tokens(kTileTokens) > 0) in_grid.push_back(tile.rows);
    }
    EXACTILE_CHECK(in_grid == expected, "in_pages " << in_pages);
  }
}

}  // namespace
}  // namespace test
}  // namespace exactile

int main() {
  exactile::test::check_used();
  exactile::test::check_small();
  exactile::test::check_clamp();
  exactile::test::check_heads();
  exactile::test::check_count();
  return exactile::test::report();
}
