// exactile/sycl/xmx/atoms_emulated.hpp - the atoms on any SYCL device with 16-wide sub-groups:
// plain loads, and exchanges between lanes, in the layouts of atoms.hpp. Not fast: made to test the
// kernel's logic where no Intel GPU is. A message that breaks a rule of the hardware yields NaN.
#pragma once

#include <exactile/sycl/element.hpp>
#include <exactile/sycl/xmx/atoms.hpp>

namespace exactile::sycl::xmx {

// One copy of each atom for a kernel, not one for each of hundreds of uses: the compiler of the CPU
// device takes minutes otherwise.
#define EXACTILE_XMX_ATOM inline __attribute__((noinline))

// ---- registers

/// An (8, 16) float fragment.
using Accumulator = Fragment;

template <char kName, int kRows_, int kColumns_>
struct Accumulators {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  Accumulator fragments[kRows][kColumns];

  void declare() {}
  template <int kRow, int kColumn>
  EXACTILE_HOST_DEVICE Accumulator& at(Constant<kRow>, Constant<kColumn>) {
    return fragments[kRow][kColumn];
  }
};

// ---- 2D block messages

/// Whether the hardware takes a message: the rules of SPV_INTEL_2d_block_io.
EXACTILE_HOST_DEVICE bool is_legal(const Surface& surface, Block block, int x, int element_bytes) {
  constexpr int kLimit = 1 << 24;
  const int row_bytes = block.columns * block.count * element_bytes;
  return x * element_bytes % 4 == 0 &&
         reinterpret_cast<unsigned long long>(surface.base) % 64 == 0 &&
         surface.width_bytes >= 64 && surface.width_bytes <= kLimit &&
         surface.width_bytes % 4 == 0 && surface.rows > 0 && surface.rows <= kLimit &&
         surface.pitch_bytes >= surface.width_bytes && surface.pitch_bytes <= kLimit &&
         surface.pitch_bytes % 16 == 0 && row_bytes <= 64 && block.rows <= 32;
}

/// Where a message reads.
struct Source {
  Surface surface;
  Block block;
  Position at;
};

template <class Arch, char kName, int kIndex, Block kBlock_, int kRowBlocks, int kTurns,
          Surfaces kSurfaces = Surfaces::kOne>
struct Cursor {
  static constexpr Block kBlock = kBlock_;
  static constexpr bool kOneSurface = kSurfaces == Surfaces::kOne;
  Source sources[kOneSurface ? 1 : kRowBlocks];

  void declare() {}
  EXACTILE_HOST_DEVICE void set(const Surface& on, Position at) {
    for (Source& source : sources) source = {on, kBlock, at};
  }
  template <int kRowBlock, int kLane>
  EXACTILE_HOST_DEVICE void place(const Run& run) {
    const Run own = of_lane(run, kLane);
    Source& source = sources[kRowBlock];
    source.surface.base = own.base;
    source.surface.rows = own.rows;
    source.at.y = own.y;
  }
  template <int kRows>
  EXACTILE_HOST_DEVICE void move_down() {
    sources[0].at.y += kRows;
  }
  EXACTILE_HOST_DEVICE Source source(int column, int row) const {
    Source from = sources[kOneSurface ? 0 : row / kBlock.rows];
    from.at.x += column;
    if constexpr (kOneSurface) from.at.y += row;
    return from;
  }
};

/// One element of a surface; 0 outside.
template <class Word>
EXACTILE_HOST_DEVICE Word word_at(const Surface& surface, int x, int y) {
  const int64_t byte = int64_t{x} * static_cast<int>(sizeof(Word));
  if (x < 0 || y < 0 || y >= surface.rows || byte >= surface.width_bytes) return 0;
  const auto* const row = static_cast<const char*>(surface.base) + int64_t{y} * surface.pitch_bytes;
  return *reinterpret_cast<const Word*>(row + byte);
}

inline constexpr unsigned short kNan16 = 0x7fff;  // of both element types
inline constexpr unsigned kNan32 = 0x7fff7fff;

template <int kRowBlocks>
EXACTILE_XMX_ATOM void read_queries(const Source& from, Queries<kRowBlocks>& to) {
  const bool legal = is_legal(from.surface, from.block, from.at.x, 2);
#pragma nounroll
  for (int r = 0; r < 8 * kRowBlocks; ++r) {
    const auto bits = word_at<unsigned short>(from.surface, from.at.x + lane(), from.at.y + r);
    to[r] = static_cast<short>(legal ? bits : kNan16);
  }
}
template <int kColumn, class C>
EXACTILE_HOST_DEVICE auto load_queries(const C& cursor) {
  constexpr int kRowBlocks = C::kBlock.rows / 8;
  Queries<kRowBlocks> block;
  read_queries<kRowBlocks>(cursor.source(kColumn, 0), block);
  return block;
}

EXACTILE_XMX_ATOM void read_keys(const Source& from, BTile& to) {
  const bool legal = is_legal(from.surface, from.block, from.at.x, 4);
#pragma nounroll
  for (int i = 0; i < 8; ++i) {
    const auto bits = word_at<unsigned>(from.surface, from.at.x + i, from.at.y + lane());
    to[i] = static_cast<int>(legal ? bits : kNan32);
  }
}
template <int kColumn, int kRow, class C>
EXACTILE_HOST_DEVICE BTile load_keys(const C& cursor) {
  BTile block;
  read_keys(cursor.source(kColumn, kRow), block);
  return block;
}

template <int kRows>
EXACTILE_XMX_ATOM void read_values(const Source& from, Values<kRows>& to) {
  const bool legal = is_legal(from.surface, from.block, from.at.x, 2);
  constexpr int kPairs = kRows / 2;
#pragma nounroll
  for (int i = 0; i < kRows; ++i) {  // column block, then pair of rows
    const int column = from.at.x + i / kPairs * 16 + lane();
    const int row = from.at.y + i % kPairs * 2;
    const unsigned low = word_at<unsigned short>(from.surface, column, row);
    const unsigned high = word_at<unsigned short>(from.surface, column, row + 1);
    to[i] = static_cast<int>(legal ? low | high << 16 : kNan32);
  }
}
template <int kColumn, int kRow, class C>
EXACTILE_HOST_DEVICE auto load_values(const C& cursor) {
  Values<C::kBlock.rows> block;
  read_values<C::kBlock.rows>(cursor.source(kColumn, kRow), block);
  return block;
}

template <class C>
EXACTILE_HOST_DEVICE void prefetch(C&) {}
template <Block kBlock>
EXACTILE_HOST_DEVICE void prefetch(const Surface&, Position) {}

EXACTILE_XMX_ATOM void store_rows(const Surface& surface, Position at, const ATile& rows) {
  const bool legal = is_legal(surface, {16, 8, 1}, at.x, 2);
  const int x = at.x + lane();
#pragma nounroll
  for (int r = 0; r < 8; ++r) {
    if (at.y + r >= surface.rows || x * 2 >= surface.width_bytes) continue;
    auto* const row = static_cast<char*>(const_cast<void*>(surface.base)) +
                      int64_t{at.y + r} * surface.pitch_bytes;
    reinterpret_cast<unsigned short*>(row)[x] =
        legal ? static_cast<unsigned short>(rows[r]) : kNan16;
  }
}

EXACTILE_HOST_DEVICE void keep_order() {}
EXACTILE_HOST_DEVICE int lane_anew() { return lane(); }

// ---- matrix multiply

template <class Element>
EXACTILE_XMX_ATOM void multiply_tiles(Accumulator& sum, const short* a, const int* b) {
  const auto sub_group = ::sycl::ext::oneapi::this_work_item::get_sub_group();
  float rows[8];
#pragma nounroll
  for (int r = 0; r < 8; ++r) rows[r] = to_float(Element{static_cast<unsigned short>(a[r])});
#pragma nounroll
  for (int k = 0; k < 16; ++k) {
    const auto pair = static_cast<unsigned>(b[k / 2]);
    const float x = to_float(Element{static_cast<unsigned short>(pair >> k % 2 * 16)});
#pragma nounroll
    for (int r = 0; r < 8; ++r) sum[r] += ::sycl::select_from_group(sub_group, rows[r], k) * x;
  }
}
template <class Element, bool kFirst, int kA, int kB, class A, class B>
EXACTILE_HOST_DEVICE void multiply(Accumulator& sum, const A& a, const B& b) {
  if constexpr (kFirst) sum = 0.0f;
  multiply_tiles<Element>(sum, reinterpret_cast<const short*>(&a) + kA * 8,
                          reinterpret_cast<const int*>(&b) + kB * 8);
}

// ---- arithmetic on fragments

/// The value of a row.
EXACTILE_HOST_DEVICE float of_row(float per_row, int row) {
  return ::sycl::select_from_group(::sycl::ext::oneapi::this_work_item::get_sub_group(), per_row,
                                   row);
}

EXACTILE_HOST_DEVICE void clear(Accumulator& a) { a = 0.0f; }
EXACTILE_HOST_DEVICE void add(Accumulator& a, const Accumulator& b) { a += b; }

EXACTILE_XMX_ATOM void exp2(Accumulator& a) {
#pragma nounroll
  for (int r = 0; r < 8; ++r) a[r] = ::sycl::exp2(a[r]);
}

EXACTILE_XMX_ATOM void scale_subtract_at(Accumulator& a, float scale, float offsets, int row0) {
#pragma nounroll
  for (int r = 0; r < 8; ++r) a[r] = ::sycl::fma(a[r], scale, -of_row(offsets, row0 + r));
}
template <int kRowBlock>
EXACTILE_HOST_DEVICE void scale_subtract(Accumulator& a, float scale, float offsets) {
  scale_subtract_at(a, scale, offsets, kRowBlock * 8);
}

EXACTILE_XMX_ATOM void scale_rows_at(Accumulator& a, float factors, int row0) {
#pragma nounroll
  for (int r = 0; r < 8; ++r) a[r] *= of_row(factors, row0 + r);
}
template <int kRowBlock>
EXACTILE_HOST_DEVICE void scale_rows(Accumulator& a, float factors) {
  scale_rows_at(a, factors, kRowBlock * 8);
}

EXACTILE_XMX_ATOM void add_scaled_at(Accumulator& a, const Fragment& b, float factors, int row0) {
#pragma nounroll
  for (int r = 0; r < 8; ++r) a[r] = ::sycl::fma(b[r], of_row(factors, row0 + r), a[r]);
}
template <int kRowBlock>
EXACTILE_HOST_DEVICE void add_scaled(Accumulator& a, const Fragment& b, float factors) {
  add_scaled_at(a, b, factors, kRowBlock * 8);
}

EXACTILE_HOST_DEVICE Fragment value_of(const Accumulator& a) { return a; }

template <class Function>
EXACTILE_XMX_ATOM void transform(Accumulator& a, float offset, const Function& f) {
  a = f(a, offset);
}

EXACTILE_XMX_ATOM void hide(Accumulator& a, int above, int upto) {
#pragma nounroll
  for (int r = 0; r < 8; ++r) {
    if (above >= r || r > upto) a[r] = -__builtin_inff();
  }
}

template <class As>
EXACTILE_XMX_ATOM bool any_above(const As& as, float limit) {
  bool found = false;
#pragma nounroll
  for (int f = 0; f < As::kRows * As::kColumns; ++f) {
#pragma nounroll
    for (int r = 0; r < 8; ++r) {
      found |= as.fragments[f / As::kColumns][f % As::kColumns][r] > limit;
    }
  }
  return any(found);
}

template <Reduction kReduction, class As>
EXACTILE_XMX_ATOM float reduce_rows(const As& as) {
  const auto sub_group = ::sycl::ext::oneapi::this_work_item::get_sub_group();
  float result = 0;
#pragma nounroll
  for (int row = 0; row < As::kColumns * 8; ++row) {
    float own = as.fragments[0][row / 8][row % 8];
#pragma nounroll
    for (int j = 1; j < As::kRows; ++j) {
      const float x = as.fragments[j][row / 8][row % 8];
      own = kReduction == Reduction::kMaximum ? ::sycl::fmax(own, x) : own + x;
    }
    const float all = kReduction == Reduction::kMaximum
                          ? ::sycl::reduce_over_group(sub_group, own, ::sycl::maximum<float>())
                          : ::sycl::reduce_over_group(sub_group, own, ::sycl::plus<float>());
    if (lane() == row) result = all;
  }
  return result;
}

template <class Element>
EXACTILE_XMX_ATOM ATile convert(const Accumulator& a) {
  ATile result;
#pragma nounroll
  for (int r = 0; r < 8; ++r) result[r] = static_cast<short>(from_float<Element>(a[r]).bits);
  return result;
}

#undef EXACTILE_XMX_ATOM

}  // namespace exactile::sycl::xmx
