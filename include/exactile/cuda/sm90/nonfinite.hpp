// exactile/cuda/sm90/nonfinite.hpp - V of a block in shared memory, read element by element: for
// Inf and NaN in tiles that hold several sequences.
#pragma once

#include <exactile/cuda/sm90/traits.hpp>

namespace exactile::cuda::sm90 {

/// Rows [0, rows) of a V, as (chunk, row, kChunk), swizzled by TMA. A set of
/// threads shares the search.
template <class Traits>
class NonFiniteValues {
  using Element = typename Traits::Element;
  static constexpr int kRowBytes = Traits::kChunk * sizeof(Element);
  static constexpr int kChunkBytes = Traits::kBlockN * kRowBytes;
  static constexpr int kChunks = Traits::kHeadDimV / Traits::kChunk;
  // Two elements at a time: their exponents, and what carries a full exponent to the sign's place.
  static constexpr ptx::uint32_t kExponents = SameAs<Element, Bf16> ? 0x7f807f80u : 0x7c007c00u;
  static constexpr ptx::uint32_t kCarry = SameAs<Element, Bf16> ? 0x00800080u : 0x04000400u;

 public:
  template <class Matrix>
  EXACTILE_DEVICE NonFiniteValues(Matrix& v, int32_t rows) : bytes_(v.bytes), rows_(rows) {}

  /// Whether there is one in the share of one of `threads` threads.
  EXACTILE_DEVICE bool any_not_finite(int32_t thread, int32_t threads) const {
    ptx::uint32_t found = 0;
    for_each_share(thread, threads, [&](uint4& words) {
      found |=
          not_finite(words.x) | not_finite(words.y) | not_finite(words.z) | not_finite(words.w);
    });
    return found != 0;
  }

  /// Zeroes those of its share.
  EXACTILE_DEVICE void clear_not_finite(int32_t thread, int32_t threads) const {
    for_each_share(thread, threads, [&](uint4& words) {
      words = {finite(words.x), finite(words.y), finite(words.z), finite(words.w)};
    });
  }

  /// visit(key, i, value) for those of rows [0, keys) in the columns that this thread has sums of:
  /// sum i is of column i / 4 * 8 + i % 2 + threadIdx.x % 4 * 2, in the row that i / 2 % 2 says.
  template <class Visit>
  EXACTILE_DEVICE void for_each_not_finite(int32_t keys, Visit visit) const {
#pragma unroll 1
    for (int32_t key = 0; key < keys; ++key) {
#pragma unroll
      for (int unit = 0; unit < Traits::kHeadDimV / 8; ++unit) {
        const ptx::uint32_t word = pair(key, unit);
        const ptx::uint32_t found = not_finite(word);
        if (found == 0) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (!(found >> (16 * half) & 0x8000u)) continue;
          const float value = to_float(static_cast<unsigned short>(word >> (16 * half)));
          visit(key, 4 * unit + half, value);
          visit(key, 4 * unit + half + 2, value);
        }
      }
    }
  }

 private:
  /// The sign's place of every element that is Inf or NaN.
  EXACTILE_DEVICE static ptx::uint32_t not_finite(ptx::uint32_t pair) {
    return ((pair & kExponents) + kCarry) & 0x80008000u;
  }

  EXACTILE_DEVICE static ptx::uint32_t finite(ptx::uint32_t pair) {
    return pair & ~((not_finite(pair) >> 15) * 0xffffu);
  }

  /// Inf or NaN as a float.
  EXACTILE_DEVICE static float to_float(unsigned short bits) {
    constexpr int kMantissaBits = SameAs<Element, Bf16> ? 7 : 10;
    const ptx::uint32_t sign = bits & 0x8000u;
    const ptx::uint32_t mantissa = bits & ((1u << kMantissaBits) - 1);
    return __uint_as_float(sign << 16 | 0x7f800000u | mantissa << (23 - kMantissaBits));
  }

  template <class Visit>
  EXACTILE_DEVICE void for_each_share(int32_t thread, int32_t threads, Visit visit) const {
    const int32_t units = rows_ * (kRowBytes / 16);
#pragma unroll 1
    for (int32_t i = thread; i < units; i += threads) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        visit(*reinterpret_cast<uint4*>(bytes_ + c * kChunkBytes + i * 16));
      }
    }
  }

  /// This thread's two elements of columns [8 * unit, 8 * unit + 8).
  EXACTILE_DEVICE ptx::uint32_t pair(int32_t row, int unit) const {
    constexpr int kUnits = kRowBytes / 16;  // of a row, permuted by the low bits of its number
    const int swizzle = kUnits == 8 ? row % 8 : row / 2 % 4;
    const int at = unit / kUnits * kChunkBytes + row * kRowBytes + (unit % kUnits ^ swizzle) * 16;
    return *reinterpret_cast<const ptx::uint32_t*>(bytes_ + at + ptx::thread_now() % 4 * 4);
  }

  unsigned char* const bytes_;
  const int32_t rows_;
};

}  // namespace exactile::cuda::sm90
