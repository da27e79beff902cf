// src/api/overlap.cpp - the memory of arrays as boxes of rows, and whether two intersect.
#include "api/overlap.hpp"

#include <algorithm>

namespace exactile {
namespace {

// Strides come from the caller: products of them may pass 64 bits.
__extension__ using Wide = __int128;

/// Rows of `row` bytes at begin + i * stride[0] + j * stride[1] + ..., i < count[0], j < count[1].
/// Strides in bytes, not negative: an array that is walked backwards has the same elements
/// forwards.
struct Box {
  Wide begin;
  int dims;
  Wide stride[kMaxRank - 1] = {};
  int64_t count[kMaxRank - 1] = {1, 1, 1};
  Wide row;

  explicit Box(const ArrayRef& a)
      : begin(reinterpret_cast<uintptr_t>(a.data)),
        dims(a.rank - 1),
        row(Wide{a.head_dim()} * dtype_bytes(a.dtype)) {
    for (int i = 0; i < dims; ++i) {
      count[i] = a.shape[i];
      stride[i] = a.shape[i] > 1 ? Wide{a.strides[i]} * dtype_bytes(a.dtype) : 0;
      if (stride[i] >= 0) continue;
      begin += stride[i] * (count[i] - 1);
      stride[i] = -stride[i];
    }
  }

  Wide end() const {
    Wide end = begin + row;
    for (int i = 0; i < dims; ++i) end += stride[i] * (count[i] - 1);
    return end;
  }
};

Wide floor_div(Wide a, Wide b) { return a / b - (a % b < 0); }

/// Whether a multiple of `step` by a factor in [-most_down, most_up] lies in the open (low, high).
bool has_multiple(Wide low, Wide high, Wide step, int64_t most_down, int64_t most_up) {
  if (step == 0) return low < 0 && 0 < high;
  const Wide first = std::max(floor_div(low, step) + 1, Wide{-most_down});
  const Wide last = std::min(-floor_div(-high, step) - 1, Wide{most_up});
  return first <= last;
}

}  // namespace

bool overlap(const ArrayRef& a, const ArrayRef& b) {
  if (!a.has_elements() || !b.has_elements()) return false;
  const Box x(a), y(b);
  if (x.end() <= y.begin || y.end() <= x.begin) return false;
  if (x.dims != 2 || y.dims != 2) return true;
  Wide stride[2];
  for (int i = 0; i < 2; ++i) {
    // A dimension of one element steps as the other array's does.
    stride[i] = std::max(x.stride[i], y.stride[i]);
    if (x.count[i] > 1 && y.count[i] > 1 && x.stride[i] != y.stride[i]) return true;
  }
  // Row (i, j) of x and row (k, l) of y meet where (i - k) * stride[0] + (j - l) * stride[1] lies
  // within a row's length of the distance between the arrays.
  const Wide distance = y.begin - x.begin;
  for (Wide heads = 1 - Wide{y.count[1]}; heads < x.count[1]; ++heads) {
    const Wide rest = distance - heads * stride[1];
    if (has_multiple(rest - x.row, rest + y.row, stride[0], y.count[0] - 1, x.count[0] - 1)) {
      return true;
    }
  }
  return false;
}

bool elements_are_distinct(const ArrayRef& a) {
  if (!a.has_elements()) return true;
  const Box x(a);
  std::array<int, kMaxRank - 1> order{0, 1, 2};
  std::ranges::sort(order, {}, [&](int i) { return x.stride[i]; });
  Wide reach = x.row;
  for (const int i : order) {
    if (x.count[i] <= 1) continue;
    if (x.stride[i] < reach) return false;
    reach += x.stride[i] * (x.count[i] - 1);
  }
  return true;
}

bool is_same_array(const ArrayRef& a, const ArrayRef& b) {
  const auto same_step = [&](int i) { return a.shape[i] <= 1 || a.strides[i] == b.strides[i]; };
  return a.data == b.data && a.shape == b.shape && same_step(0) && same_step(1);
}

}  // namespace exactile
