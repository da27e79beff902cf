// exactile/cpu/simd.hpp - vectors of fp32 lanes on GCC/clang vector extensions.
//
// One source for every instruction set: a translation unit defines EXACTILE_CPU_ISA (the name of
// its inline namespace) and is compiled with that set's flags. Lanes are query rows everywhere in
// the CPU's kernels, so there is no horizontal operation in here.
#pragma once

#include <exactile/element.hpp>
#include <exactile/platform.hpp>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef EXACTILE_CPU_ISA
#define EXACTILE_CPU_ISA native
#endif
#define EXACTILE_INLINE inline __attribute__((always_inline))
#define EXACTILE_LAMBDA_INLINE __attribute__((always_inline))

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;  // SSE2, NEON
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int Ints __attribute__((vector_size(kLanes * 4)));
typedef unsigned Words __attribute__((vector_size(kLanes * 4)));
typedef unsigned short Halves __attribute__((vector_size(kLanes * 2)));

/// The compiler's own fp16, for where no instruction converts a vector.
#if defined(__clang__) || defined(__aarch64__)
using NativeHalf = __fp16;  // gcc 12 on arm64 and clang 14 have no _Float16 in C++
#else
using NativeHalf = _Float16;
#endif
EXACTILE_INLINE float to_float(float x) { return x; }
EXACTILE_INLINE float to_float(Bf16 x) {
  return __builtin_bit_cast(float, static_cast<unsigned>(x.bits) << 16);
}
EXACTILE_INLINE float to_float(Fp16 x) {
  NativeHalf half;
  __builtin_memcpy(&half, &x, sizeof half);
  return static_cast<float>(half);
}
EXACTILE_INLINE Fp16 to_fp16(float x) {
  const auto half = static_cast<NativeHalf>(x);
  Fp16 bits;
  __builtin_memcpy(&bits, &half, sizeof half);
  return bits;
}

EXACTILE_INLINE bool is_finite(float x) { return x - x == 0; }
EXACTILE_INLINE bool is_finite(Bf16 x) { return (x.bits & 0x7f80) != 0x7f80; }
EXACTILE_INLINE bool is_finite(Fp16 x) { return (x.bits & 0x7c00) != 0x7c00; }

template <class V>
EXACTILE_INLINE V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
EXACTILE_INLINE void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
EXACTILE_INLINE Floats splat(float x) { return x - Floats{}; }
EXACTILE_INLINE Ints splat(int x) { return x - Ints{}; }

EXACTILE_INLINE bool any(Ints mask) {
  int found = 0;
  for (int i = 0; i < kLanes; ++i) found |= mask[i];
  return found != 0;
}

/// Lane by lane `a > b ? a : b`: b where either is NaN, as the x86 instruction does.
EXACTILE_INLINE Floats lane_max(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

/// a * b + c, fused where there is an instruction for it. A compiler that may fuse as it likes
/// (-ffp-contract=fast, gcc's default) does so in one instantiation and not in another, and a row's
/// bits would depend on the tile that it is in: so the kernels are compiled with off, and say it.
EXACTILE_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

/// Factor of the exponents in exp2(), > 0.
struct ExpScale {
  float factor;
  float lowest;  ///< times factor it is -127, the clamp; finite for a factor of 2^-120 or more

  EXACTILE_INLINE explicit ExpScale(float scale) : factor(scale), lowest(-127.0f / scale) {}
};

/// 2^(x * factor) for x * factor < 127. Exactly 0 below 2^-126.5 (so for -inf), NaN for NaN
/// whatever its payload. The product is never rounded where there is a fused multiply-add. The
/// nearest integer comes out of an addition that leaves it, with the exponent's bias, in the low
/// bits; a minimax polynomial does [-0.5, 0.5]. Relative error: 2e-7, 4e-6, 7e-5 for degree 5,
/// 4, 3.
template <int kDegree>
EXACTILE_INLINE Floats exp2(Floats x, ExpScale scale) {
  static_assert(3 <= kDegree && kDegree <= 5);
  constexpr float kMagic = 12582912.0f + 127;  // 1.5 * 2^23 + bias
  x = lane_max(splat(scale.lowest), x);        // 2^-127 comes out as 0: its biased exponent is 0
  const Floats biased = fma(x, splat(scale.factor), splat(kMagic));
  const Floats f = fma(x, splat(scale.factor), kMagic - biased);
  Floats p;
  const auto step = [&](float coefficient)
                        EXACTILE_LAMBDA_INLINE { p = fma(p, f, splat(coefficient)); };
  if constexpr (kDegree == 3) {
    p = splat(0x1.c3f776p-5f);
    step(0x1.f0de1cp-3f), step(0x1.62f31ap-1f), step(0x1.fff692p-1f);
  } else if constexpr (kDegree == 4) {
    p = splat(0x1.3997d4p-7f);
    step(0x1.ca1442p-5f), step(0x1.ec06dap-3f), step(0x1.62e0dcp-1f), step(0x1.ffffe8p-1f);
  } else {
    p = splat(0x1.5c08e4p-10f);
    step(0x1.3d0c54p-7f), step(0x1.c6b6e4p-5f), step(0x1.ebf918p-3f), step(0x1.62e428p-1f);
    step(1.0f);
  }
  return p * (Floats)((Words)biased << 23);
}

/// Relative error 3e-7.
EXACTILE_INLINE Floats tanh(Floats x) {
  // Near 0, where 1 - 2 / (e^2x + 1) would cancel, a polynomial in x^2.
  const Floats z = x * x;
  Floats p = splat(-0x1.901840p-8f);
  const auto step = [&](float coefficient)
                        EXACTILE_LAMBDA_INLINE { p = fma(p, z, splat(coefficient)); };
  step(0x1.581fb4p-6f), step(-0x1.b928e2p-5f), step(0x1.110e2ep-3f), step(-0x1.555552p-2f);
  const Floats near = fma(x * z, p, x);
  const Floats magnitude = lane_max(-x, x);
  const Floats bounded = -lane_max(splat(-10.0f), -magnitude);  // 1 from there on; NaN stays
  const Floats far = 1.0f - 2.0f / (1.0f + exp2<5>(bounded, ExpScale(0x1.715476p+1f)));
  return magnitude < splat(0.625f) ? near : x < Floats{} ? -far : far;
}

/// What variants of the scores compute with (exactile/scores.hpp).
struct Math {
  EXACTILE_INLINE static Floats tanh(Floats x) { return cpu::tanh(x); }
  EXACTILE_INLINE static float exp2(float x) { return __builtin_exp2f(x); }
  /// Natural logarithm of sum * 2^(reference * scale_log2).
  EXACTILE_INLINE static float lse(float reference, float scale_log2, float sum) {
    constexpr float kLn2 = 0.693147180559945309f;
    return reference * scale_log2 * kLn2 + __builtin_logf(sum);
  }
};

/// Transposes a kLanes x kLanes block of 32-bit values by log2(kLanes) perfect shuffles.
template <class V, int... I>
EXACTILE_INLINE void interleave(V a, V b, V& low, V& high) {
  low = __builtin_shufflevector(a, b, (I / 2 + (I & 1) * kLanes)...);
  high = __builtin_shufflevector(a, b, (I / 2 + kLanes / 2 + (I & 1) * kLanes)...);
}
template <class V>
EXACTILE_INLINE void transpose(V (&r)[kLanes]) {
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    V t[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
#if defined(__AVX512F__)
      interleave<V, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(r[i], r[i + kLanes / 2],
                                                                          t[2 * i], t[2 * i + 1]);
#elif defined(__AVX2__)
      interleave<V, 0, 1, 2, 3, 4, 5, 6, 7>(r[i], r[i + kLanes / 2], t[2 * i], t[2 * i + 1]);
#else
      interleave<V, 0, 1, 2, 3>(r[i], r[i + kLanes / 2], t[2 * i], t[2 * i + 1]);
#endif
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) r[i] = t[i];
  }
}

// Storage type -> fp32 lanes.
EXACTILE_INLINE Floats to_floats(const float* p) { return load<Floats>(p); }
EXACTILE_INLINE Words widen(const void* p) {
  return __builtin_convertvector(load<Halves>(p), Words);
}
EXACTILE_INLINE Floats to_floats(const Bf16* p) { return (Floats)(widen(p) << 16); }
EXACTILE_INLINE Floats to_floats(const Fp16* p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps((__m256i)load<Halves>(p));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtph_ps((__m128i)load<Halves>(p));
#else
  Floats v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

/// The canonical NaN of results.
inline constexpr float kNan = __builtin_nanf("");

// fp32 lanes -> storage type, round to nearest even. The only NaN is kNan.
EXACTILE_INLINE void from_floats(float* p, Floats x) { store(p, x); }
EXACTILE_INLINE void from_floats(Bf16* p, Floats x) {
#if defined(__AVX512BF16__)
  store(p, _mm512_cvtneps_pbh((__m512)x));  // subnormal numbers become 0
#else
  const Words bits = (Words)x;
  store(p, __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves));
#endif
}
EXACTILE_INLINE void from_floats(Fp16* p, Floats x) {
#if defined(__AVX512F__)
  store(p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  store(p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = to_fp16(x[i]);
#endif
}

/// Copies 64 aligned bytes (less for narrower vectors), past the caches if kStream and they can be.
template <bool kStream, class Element, int kSize>
EXACTILE_INLINE void copy_line(Element* to, const Element (&line)[kSize]) {
#if defined(__AVX512F__)
  if constexpr (kStream) return _mm512_stream_si512((__m512i*)to, load<__m512i>(line));
#elif defined(__AVX2__)
  if constexpr (kStream && sizeof line == 64) {
    _mm256_stream_si256((__m256i*)to, load<__m256i>(line));
    return _mm256_stream_si256((__m256i*)to + 1, load<__m256i>((const __m256i*)line + 1));
  }
#endif
  __builtin_memcpy(to, line, sizeof line);
}
/// Makes streamed stores visible to other threads before what follows.
EXACTILE_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

/// Two fp32 to a 32-bit lane of two bf16, `even` in the low half: the operand layout of bf16 dot
/// products. Rounds to nearest, ties away. A NaN stays one unless its 16 low bits carry over, and
/// those are 0 in a NaN that came from bf16.
EXACTILE_INLINE Words pair_bf16(Floats even, Floats odd) {
  return (((Words)even + 0x8000u) >> 16) | (((Words)odd + 0x8000u) & 0xffff0000u);
}

/// acc + a * b, b the same for all lanes.
EXACTILE_INLINE Floats multiply_add(Floats acc, Floats a, float b) { return fma(a, splat(b), acc); }
#if defined(__AVX512BF16__)
/// acc + a.low * b.low + a.high * b.high: pairs of bf16.
EXACTILE_INLINE Floats multiply_add(Floats acc, Words a, unsigned b) {
  return (Floats)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)_mm512_set1_epi32((int)b));
}
#endif

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
