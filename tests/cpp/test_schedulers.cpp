// tests/cpp/test_schedulers.cpp - every policy and every order of the list covers every (sequence,
// m_block, head) exactly once, over all small shapes.
#include <algorithm>
#include <ostream>
#include <vector>

#include "check.hpp"
#include "coverage.hpp"

namespace exactile::test {
namespace {

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "len_q";
  for (int32_t b = 0; b < shape.batch; ++b) out << ' ' << shape.len_q[b];
  out << ", len_k";
  for (int32_t b = 0; b < shape.batch; ++b) out << ' ' << shape.len_k[b];
  return out << ", num_heads " << shape.num_heads << ", tile_tokens " << shape.tile_tokens
             << ", block_n " << shape.block_n << ", mask " << shape.mask.left << ' '
             << shape.mask.right;
}

void check_shape(const Shape& shape) {
  const char* error = individual_error(shape);
  EXACTILE_CHECK(!error, error << " by Individual: " << shape);
  for (const ListOrder order : {ListOrder::kNatural, ListOrder::kLongestFirst,
                                ListOrder::kSequenceMajor, ListOrder::kHeadMajor}) {
    error = valid_only_error(shape, order, 4);
    EXACTILE_CHECK(!error, error << " by list order " << int{static_cast<unsigned char>(order)}
                                 << ": " << shape);
  }
}

/// 0 to 3 tiles, with the lengths beside their boundaries.
std::vector<int32_t> edge_lengths(int32_t tile) {
  std::vector<int32_t> lengths{0, 1, tile - 1, tile, tile + 1, 2 * tile - 1, 2 * tile, 3 * tile};
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

/// Every batch of `shape.batch` lengths; the number of keys runs through the lengths differently,
/// so that it is less than, equal to and more than the number of queries, and 0.
void check_all_lengths(Shape shape) {
  const std::vector<int32_t> lengths = edge_lengths(shape.tile_tokens);
  const auto n = static_cast<int32_t>(lengths.size());
  int32_t combinations = 1;
  for (int32_t b = 0; b < shape.batch; ++b) combinations *= n;
  for (int32_t i = 0; i < combinations; ++i) {
    int32_t digits = i;
    for (int32_t b = 0; b < shape.batch; ++b, digits /= n) {
      shape.len_q[b] = lengths[digits % n];
      shape.len_k[b] = lengths[(digits + i + 2 * b) % n];
    }
    check_shape(shape);
  }
}

/// With GQA packing the `group` query heads of a kv head share a tile of block_m rows.
void check_packing(int32_t block_m, int32_t group) {
  const int32_t tile_tokens = block_m / group;
  EXACTILE_CHECK(tile_tokens * group <= block_m, "block_m " << block_m << ", group " << group);
  for (const Mask mask : {Mask{}, Mask{.left = -1, .right = 0}, Mask{.left = 2, .right = 1}}) {
    for (int32_t batch = 0; batch <= kMaxBatch; ++batch) {
      for (int32_t num_heads = 1; num_heads <= 3; ++num_heads) {
        check_all_lengths({.batch = batch,
                           .num_heads = num_heads,
                           .tile_tokens = tile_tokens,
                           .block_n = 2,
                           .mask = mask});
      }
    }
  }
}

}  // namespace
}  // namespace exactile::test

int main() {
  for (const int block_m : {1, 2, 3, 8}) exactile::test::check_packing(block_m, 1);
  for (const int group : {2, 3, 5, 8}) exactile::test::check_packing(8, group);
  return exactile::test::report();
}
