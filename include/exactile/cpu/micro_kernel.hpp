// exactile/cpu/micro_kernel.hpp - the two matrix products of a panel and a block of keys.
//
// Both are outer products over broadcast scalars. P = panel rows, the fastest dimension everywhere:
//   scores: S[key][P]    =  sum_d   K[key][d] * Q[d][P]        K broadcast as it lies in the tensor
//   values: O[d][P]      += sum_key V[key][d] * S[key][P]      V likewise
// With bf16 pairs, one step of the sum takes two d (or two keys) at once.
#pragma once

#include <exactile/cpu/traits.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

/// Operand of the products: an fp32, or a pair of bf16 in a 32-bit word.
template <Product>
struct OperandOf {
  using Scalar = float;
  using Vector = Floats;
  static constexpr int kPerScalar = 1;
};
template <>
struct OperandOf<Product::kBf16Pair> {
  using Scalar = unsigned;
  using Vector = Words;
  static constexpr int kPerScalar = 2;
};

template <>
struct OperandOf<Product::kBf16Tile> : OperandOf<Product::kBf16Pair> {};

/// Operand whose scalars are broadcast: element (r, k) at data[r * row_stride + k * k_stride],
/// strides in Scalars.
template <class Scalar>
struct BroadcastOf {
  const Scalar* data;
  int64_t row_stride;
  int64_t k_stride;
};

template <class Traits, Product = Traits::kProduct>
struct MicroKernel {
  using Operand = OperandOf<Traits::kProduct>;
  using Scalar = typename Operand::Scalar;
  using Vector = typename Operand::Vector;
  static constexpr int kPanel = Traits::kVectors * kLanes;

  using Broadcast = BroadcastOf<Scalar>;
  /// A block's keys are taken in multiples of this; the rest has probability 0.
  static constexpr int kKeyStep = Operand::kPerScalar;

  /// Set-up and clean-up of a work-group: none.
  struct Session {
    EXACTILE_INLINE Session() {}
    EXACTILE_INLINE ~Session() {}
  };

  /// acc[r][v] += sum_k b(r, k) * a[k][v], a with a pitch of kPanel.
  template <int kRows, int kVecs>
  EXACTILE_INLINE static void multiply(const Broadcast& b, const Scalar* a, int k_steps,
                                       Floats (&acc)[kRows][kVecs]) {
    for (int k = 0; k < k_steps; ++k) {
      Vector x[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) x[v] = load<Vector>(a + k * kPanel + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Scalar y = load<Scalar>(b.data + r * b.row_stride + k * b.k_stride);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) acc[r][v] = multiply_add(acc[r][v], x[v], y);
      }
    }
  }

  /// 6 -> 4 -> 2 -> 1: nothing is left of 64 keys, or of 128 dims, but what one step takes.
  static constexpr int smaller_step(int rows) { return rows > 4 ? 4 : rows / 2; }

  /// s[key][P] for the keys [key, num_keys), kRows at a time, between() before each; what is left
  /// goes to smaller steps.
  template <int kVecs, int kRows = Traits::kKeys, class Between>
  EXACTILE_INLINE static void scores(const Broadcast& k, const Scalar* q, int k_steps, int num_keys,
                                     float* s, Between between, int key = 0) {
    for (; key + kRows <= num_keys; key += kRows) {
      between();
      Floats acc[kRows][kVecs] = {};
      multiply<kRows, kVecs>({k.data + key * k.row_stride, k.row_stride, k.k_stride}, q, k_steps,
                             acc);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) store(s + (key + r) * kPanel + v * kLanes, acc[r][v]);
      }
    }
    if constexpr (kRows > 1) {
      scores<kVecs, smaller_step(kRows)>(k, q, k_steps, num_keys, s, between, key);
    }
  }

  /// o[d][P] = alpha[P] * o[d][P] + sum_key v(d, key) * p[key][P] for d in [d, head_dim_v).
  /// `fresh`: o holds nothing yet.
  template <int kVecs, int kRows = Traits::kDims, class Between>
  EXACTILE_INLINE static void values(const Broadcast& v, const Scalar* p, int k_steps,
                                     int head_dim_v, const Floats (&alpha)[kVecs], bool fresh,
                                     float* o, Between between, int d = 0) {
    constexpr bool kChained = Traits::kChain == Chain::kGroup;
    for (; d + kRows <= head_dim_v; d += kRows) {
      between();
      float* const to = o + d * kPanel;
      Floats acc[kRows][kVecs] = {};
      if (kChained && !fresh) {
        for_each<kRows, kVecs>(
            to,
            [&](Floats& sum, float* at, int i)
                EXACTILE_LAMBDA_INLINE { sum = alpha[i] * load<Floats>(at); },
            acc);
      }
      if (!kChained) prefetch<kRows, kVecs>(to);
      multiply<kRows, kVecs>({v.data + d * v.row_stride, v.row_stride, v.k_stride}, p, k_steps,
                             acc);
      if (!kChained && !fresh) {
        for_each<kRows, kVecs>(
            to,
            [&](Floats& sum, float* at, int i)
                EXACTILE_LAMBDA_INLINE { sum = fma(alpha[i], load<Floats>(at), sum); },
            acc);
      }
      for_each<kRows, kVecs>(
          to, [](Floats& sum, float* at, int) EXACTILE_LAMBDA_INLINE { store(at, sum); }, acc);
    }
    if constexpr (kRows > 1) {
      values<kVecs, smaller_step(kRows)>(v, p, k_steps, head_dim_v, alpha, fresh, o, between, d);
    }
  }

 private:
  /// visit(acc[r][i], where it is kept in o, i).
  template <int kRows, int kVecs, class Visit>
  EXACTILE_INLINE static void for_each(float* o, Visit visit, Floats (&acc)[kRows][kVecs]) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kVecs; ++i) visit(acc[r][i], o + r * kPanel + i * kLanes, i);
    }
  }

  /// What is read at the end is asked for at the beginning.
  template <int kRows, int kVecs>
  EXACTILE_INLINE static void prefetch(const float* o) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kVecs * kLanes; i += 16) __builtin_prefetch(o + r * kPanel + i);
    }
  }
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
