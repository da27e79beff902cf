// exactile/sycl/xmx/atoms.hpp - the atoms of the XMX kernel: matrix multiply (dpas), 2D block
// messages, and arithmetic on whole fragments. One interface, two implementations: atoms_real.hpp
// for Intel GPUs, atoms_emulated.hpp (-DEXACTILE_XMX_EMULATED) for every SYCL device with 16-wide
// sub-groups, which follows the same layouts and checks every rule of the messages.
//
// A fragment lies across the 16 lanes of a sub-group (cl_intel_subgroup_matrix_multiply_accumulate,
// SPV_INTEL_2d_block_io):
//   Accumulator   (8, 16) float    component r = row r, lane n = column n
//   ATile         (8, 16) 16-bit   component r = row r, lane k = column k
//   BTile         (16, 16) 16-bit  component i = rows 2i (low half) and 2i + 1, lane n = column n
//   Queries       (8 R, 16)        R ATiles
//   Values<32>    (32, 32)         BTiles: first 16 columns of both row blocks, then the others
//   Values<16>    (16, 32)         BTiles: first 16 columns, then the others
// A float "per row" has the value of row r in lane r: 16 rows, or 8 and 8 lanes without meaning.
//
// What outlives a straight piece of code is not a value but a place: Accumulators<name, ...> and
// Cursor<..., name> stand for registers named in the assembly, one set for each kernel.
#pragma once

#include <exactile/sycl/xmx/traits.hpp>
#include <sycl/sycl.hpp>

namespace exactile::sycl::xmx {

inline constexpr int kLanes = 16;

using ATile = short __attribute__((ext_vector_type(8)));
using BTile = int __attribute__((ext_vector_type(8)));
template <int kRowBlocks>
using Queries = short __attribute__((ext_vector_type(8 * kRowBlocks)));
template <int kRows>
using Values = int __attribute__((ext_vector_type(kRows)));
/// What an Accumulator holds, as a value.
using Fragment = float __attribute__((ext_vector_type(8)));

/// Rows of 16-bit elements at a pitch. Reads outside are zero, writes outside are dropped: a tail
/// needs no predicate, and a neighbour's NaN cannot enter.
struct Surface {
  const void* base;  ///< 64-byte aligned
  int width_bytes;   ///< >= 64, a multiple of 4
  int rows;          ///< > 0
  int pitch_bytes;   ///< >= width_bytes, a multiple of 16
};

/// Place in a surface. x in elements of the message: 16-bit, or 32-bit for keys.
struct Position {
  int x, y;
};

/// Shape of the block that a message reads.
struct Block {
  int columns, rows, count;  ///< `count` blocks side by side

  constexpr int width() const { return columns * count; }
};
inline constexpr Block kKeyBlock{8, 16, 1};
template <int kRows>
inline constexpr Block kValueBlock{16, kRows, 2};
template <int kRowBlocks>
inline constexpr Block kQueryBlock{16, 8 * kRowBlocks, 1};

/// Where the blocks of a cursor that lie below one another are: in one surface, or each in one of
/// its own, which differ in what a Run says. Runs are found 16 at a time: each lane has one.
enum class Surfaces : unsigned char { kOne, kEach };
struct Run {
  const void* base;
  int rows;
  int y;  ///< of the block
};

enum class Reduction : unsigned char { kMaximum, kSum };

/// f(constant 0), ..., f(constant kCount - 1): fragments are indexed by constants alone.
template <int kValue>
struct Constant {
  constexpr operator int() const { return kValue; }
};
template <int kCount, int kFirst = 0, class Function>
EXACTILE_HOST_DEVICE constexpr void unrolled(Function&& f) {
  if constexpr (kFirst < kCount) {
    f(Constant<kFirst>{});
    unrolled<kCount, kFirst + 1>(f);
  }
}

EXACTILE_HOST_DEVICE int lane() {
  return static_cast<int>(
      ::sycl::ext::oneapi::this_work_item::get_sub_group().get_local_linear_id());
}

template <class T>
EXACTILE_HOST_DEVICE T of_lane(T value, int lane) {
  return ::sycl::group_broadcast(::sycl::ext::oneapi::this_work_item::get_sub_group(), value, lane);
}
EXACTILE_HOST_DEVICE Run of_lane(const Run& run, int lane) {
  const auto base = reinterpret_cast<unsigned long long>(run.base);
  return {.base = reinterpret_cast<const void*>(of_lane(base, lane)),
          .rows = of_lane(run.rows, lane),
          .y = of_lane(run.y, lane)};
}

EXACTILE_HOST_DEVICE bool any(bool condition) {
  return ::sycl::any_of_group(::sycl::ext::oneapi::this_work_item::get_sub_group(), condition);
}

}  // namespace exactile::sycl::xmx

#ifdef EXACTILE_XMX_EMULATED
#include <exactile/sycl/xmx/atoms_emulated.hpp>
#else
#include <exactile/sycl/xmx/atoms_real.hpp>
#endif
