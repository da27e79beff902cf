// exactile/cpu/row_lanes.hpp - vectors and loads of functions over rows (merge, append).
#pragma once

#include <exactile/cpu/simd.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

/// kLanes columns at a time.
struct RowLanes {
  using Values = Floats;
  static constexpr int kStep = kLanes;
  template <class Element>
  EXACTILE_INLINE static Floats load(const Element* p) {
    return to_floats(p);
  }
  template <class Element>
  EXACTILE_INLINE static void store(Element* p, Floats x) {
    from_floats(p, x);
  }
  template <class Element>
  EXACTILE_INLINE static void copy(Element* to, const Element* from) {
    __builtin_memmove(to, from, kStep * sizeof *to);
  }
  EXACTILE_INLINE static Floats multiply_add(Floats sum, Floats x, float weight) {
    return cpu::multiply_add(sum, x, weight);
  }
};

/// One at a time, for what a row has behind its last kLanes.
struct RowTail {
  using Values = float;
  static constexpr int kStep = 1;
  template <class Element>
  EXACTILE_INLINE static float load(const Element* p) {
    return to_float(*p);
  }
  template <class Element>
  EXACTILE_INLINE static void store(Element* p, float x) {
    Element rounded[kLanes];
    from_floats(rounded, splat(x));
    *p = rounded[0];
  }
  template <class Element>
  EXACTILE_INLINE static void copy(Element* to, const Element* from) {
    *to = *from;
  }
  EXACTILE_INLINE static float multiply_add(float sum, float x, float weight) {
    return cpu::multiply_add(splat(sum), splat(x), weight)[0];
  }
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
