// exactile/sycl/element.hpp - elements and their values in float. Device code.
#pragma once

#include <exactile/sycl/params.hpp>

namespace exactile::sycl {

EXACTILE_HOST_DEVICE float to_float(float value) { return value; }

EXACTILE_HOST_DEVICE float to_float(Fp16 value) {
  return static_cast<float>(__builtin_bit_cast(_Float16, value.bits));
}

EXACTILE_HOST_DEVICE float to_float(Bf16 value) {
  return __builtin_bit_cast(float, static_cast<unsigned>(value.bits) << 16);
}

/// Rounded to the nearest element, ties to even.
template <class Element>
EXACTILE_HOST_DEVICE Element from_float(float value) {
  if constexpr (SameAs<Element, float>) {
    return value;
  } else if constexpr (SameAs<Element, Fp16>) {
    return {__builtin_bit_cast(unsigned short, static_cast<_Float16>(value))};
  } else {
    static_assert(SameAs<Element, Bf16>);
    const auto bits = __builtin_bit_cast(unsigned, value);
    // A NaN stays one: rounding could carry it into infinity.
    const unsigned rounded = value != value ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    return {static_cast<unsigned short>(rounded >> 16)};
  }
}

}  // namespace exactile::sycl
