// exactile/cuda/not_finite.hpp - Inf and NaN among 16-bit elements, two of them in a 32-bit word.
//
// A probability of 0 times Inf or NaN is NaN: where a row does not see a key, V's have to go.
#pragma once

#include <exactile/cuda/ptx.hpp>

namespace exactile::cuda {

template <class Element>
struct NotFinite {
  // The exponents, and what carries a full one to the sign's place.
  static constexpr ptx::uint32_t kExponents = SameAs<Element, Bf16> ? 0x7f807f80u : 0x7c007c00u;
  static constexpr ptx::uint32_t kCarry = SameAs<Element, Bf16> ? 0x00800080u : 0x04000400u;

  /// The sign's place of every element that is Inf or NaN.
  EXACTILE_DEVICE static ptx::uint32_t found(ptx::uint32_t pair) {
    return ((pair & kExponents) + kCarry) & 0x80008000u;
  }

  /// The pair with 0 in their place.
  EXACTILE_DEVICE static ptx::uint32_t cleared(ptx::uint32_t pair) {
    return pair & ~((found(pair) >> 15) * 0xffffu);
  }

  /// visit(half, value as a float) for those of a pair.
  template <class Visit>
  EXACTILE_DEVICE static void for_each(ptx::uint32_t pair, Visit visit) {
    const ptx::uint32_t which = found(pair);
    if (which == 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!(which >> (16 * half) & 0x8000u)) continue;
      visit(half, ptx::unpack<Element>(pair, half));
    }
  }
};

}  // namespace exactile::cuda
