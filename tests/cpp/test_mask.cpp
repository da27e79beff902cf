// tests/cpp/test_mask.cpp - Mask and visible_pairs against one rule applied key by key, and at the
// largest lengths.
#include <algorithm>
#include <exactile/mask.hpp>
#include <ostream>

#include "check.hpp"

namespace exactile::test {
namespace {

constexpr int32_t kInt32Max = 2147483647;

std::ostream& operator<<(std::ostream& out, Mask mask) {
  return out << "mask " << mask.left << ' ' << mask.right;
}

std::ostream& operator<<(std::ostream& out, KeyRange keys) {
  return out << "[" << keys.begin << ", " << keys.end << ")";
}

/// The rule itself, for one (query, key) pair.
bool sees(Mask mask, int32_t row, int32_t key, int32_t len_q, int32_t len_k) {
  const int32_t position = row + len_k - len_q;
  return (mask.left < 0 || key >= position - mask.left) &&
         (mask.right < 0 || key <= position + mask.right);
}

/// `keys` holds exactly the keys in [0, len_k) that `expected` is true for. A range that is not
/// empty stays inside [0, len_k]; only an empty one may have its begin past its end.
template <class Expected>
void check_range(KeyRange keys, int32_t len_k, Expected expected, const std::string& context) {
  EXACTILE_CHECK(keys.empty() || (keys.begin >= 0 && keys.end <= len_k), keys << ' ' << context);
  for (int32_t key = 0; key < len_k; ++key) {
    const bool inside = keys.begin <= key && key < keys.end;
    EXACTILE_CHECK(inside == expected(key), "key " << key << ' ' << keys << ' ' << context);
  }
}

void check_rows(Mask mask, int32_t len_q, int32_t len_k, int32_t first_row, int32_t last_row) {
  const int32_t first = len_q - first_row, last = len_q - last_row;
  std::ostringstream rows_text;
  rows_text << mask << ", len_q " << len_q << ", len_k " << len_k << ", rows " << first_row
            << " to " << last_row;
  const std::string context = rows_text.str();
  const auto count = [&](int32_t key) {
    int32_t rows = 0;
    for (int32_t row = first_row; row <= last_row; ++row)
      rows += sees(mask, row, key, len_q, len_k);
    return rows;
  };
  const auto any = [&](int32_t key) { return count(key) > 0; };
  const auto all = [&](int32_t key) { return count(key) == last_row - first_row + 1; };
  check_range(mask.any_visible(first, last, len_k), len_k, any, "any, " + context);
  check_range(mask.all_visible(first, last, len_k), len_k, all, "all, " + context);
  if (first == last) check_range(mask.visible(first, len_k), len_k, any, "row, " + context);
}

void check_lengths(Mask mask, int32_t len_q, int32_t len_k) {
  int64_t pairs = 0;
  for (int32_t row = 0; row < len_q; ++row) {
    for (int32_t key = 0; key < len_k; ++key) pairs += sees(mask, row, key, len_q, len_k);
    for (int32_t last_row = row; last_row < len_q; ++last_row) {
      check_rows(mask, len_q, len_k, row, last_row);
    }
  }
  EXACTILE_CHECK(visible_pairs(mask, len_q, len_k) == pairs,
                 mask << ", len_q " << len_q << ", len_k " << len_k << ": expected " << pairs
                      << ", got " << visible_pairs(mask, len_q, len_k));
}

void check_small() {
  for (int32_t left = -1; left <= 4; ++left) {
    for (int32_t right = -1; right <= 4; ++right) {
      for (int32_t len_q = 0; len_q <= 7; ++len_q) {
        for (int32_t len_k = 0; len_k <= 7; ++len_k) {
          check_lengths({.left = left, .right = right}, len_q, len_k);
        }
      }
    }
  }
}

/// 1 + 2 + ... + n.
constexpr int64_t triangle(int64_t n) {
  return n <= 0 ? 0 : n % 2 ? (n + 1) / 2 * n : n / 2 * (n + 1);
}

/// Pairs of n queries and n keys: all, less the corner beyond either side of the window.
constexpr int64_t square_pairs(Mask mask, int64_t n) {
  return n * n - (mask.left < 0 ? 0 : triangle(n - 1 - mask.left)) -
         (mask.right < 0 ? 0 : triangle(n - 1 - mask.right));
}

// Constant evaluation does not compile where a signed integer overflows.
constexpr bool exact_at_the_limit() {
  for (const int32_t left : {-1, 0, 1, 12345, kInt32Max - 1, kInt32Max}) {
    for (const int32_t right : {-1, 0, 1, 12345, kInt32Max - 1, kInt32Max}) {
      const Mask mask{.left = left, .right = right};
      for (const int32_t n : {kInt32Max, kInt32Max - 1, 1 << 30}) {
        if (visible_pairs(mask, n, n) != square_pairs(mask, n)) return false;
      }
      // One query sees the last `left` keys and itself; one key is seen by the first rows after it
      // and the last before it. Here the other side has the largest length.
      const int64_t keys = left < 0 ? kInt32Max : std::min<int64_t>(kInt32Max, int64_t{left} + 1);
      if (visible_pairs(mask, 1, kInt32Max) != keys) return false;
      const int64_t rows = right < 0 ? kInt32Max : std::min<int64_t>(kInt32Max, int64_t{right} + 1);
      if (visible_pairs(mask, kInt32Max, 1) != rows) return false;
      if (visible_pairs(mask, 0, kInt32Max) != 0 || visible_pairs(mask, kInt32Max, 0) != 0)
        return false;
    }
  }
  return true;
}
static_assert(exact_at_the_limit());

constexpr bool is(KeyRange keys, int32_t begin, int32_t end) {
  return keys.begin == begin && keys.end == end;
}
constexpr Mask kCausal{.left = -1, .right = 0};
constexpr Mask kWidest{.left = kInt32Max, .right = kInt32Max};
constexpr Mask kNarrow{.left = 3, .right = 2};
static_assert(is(kCausal.visible(1, kInt32Max), 0, kInt32Max));
static_assert(is(kCausal.visible(kInt32Max, kInt32Max), 0, 1));
static_assert(kCausal.visible(kInt32Max, 1).empty());
static_assert(is(kWidest.visible(1, kInt32Max), 0, kInt32Max));
static_assert(is(kWidest.visible(kInt32Max, kInt32Max), 0, kInt32Max));
static_assert(is(kWidest.visible(kInt32Max, 1), 0, 1));
static_assert(is(kNarrow.visible(1, kInt32Max), kInt32Max - 4, kInt32Max));
static_assert(is(kNarrow.any_visible(kInt32Max, 1, kInt32Max), 0, kInt32Max));
static_assert(kNarrow.all_visible(kInt32Max, 1, kInt32Max).empty());

}  // namespace
}  // namespace exactile::test

int main() {
  exactile::test::check_small();
  return exactile::test::report();
}
