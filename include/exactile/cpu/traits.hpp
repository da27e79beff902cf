// exactile/cpu/traits.hpp - how each element type is computed with the instruction set at hand.
//
// A panel is kVectors vectors of query rows. A micro-kernel holds kKeys x kVectors accumulators for
// S = K Q^T and kDims x kVectors for O = V^T P^T.
#pragma once

#include <exactile/cpu/params.hpp>
#include <exactile/cpu/simd.hpp>
#include <exactile/kv_layout.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

enum class Product {
  kFloat,     ///< fp32 fused multiply-add; 16-bit K and V are widened once per block
  kBf16Pair,  ///< vdpbf16ps: two bf16 products per 32-bit lane
  kBf16Tile,  ///< AMX: 16 x 16 x 32 bf16 products per instruction
};

/// What one chain of additions to o runs over. Chains of a block start at 0; bf16, whose results
/// are rounded to 2^-9 anyway, does without (benchmarks/cpu.md).
enum class Chain { kBlock, kGroup };

template <class Element>
struct ElementTraits;

template <>
struct ElementTraits<float> {
  using Element = float;
  static constexpr Product kProduct = Product::kFloat;
  static constexpr int kExpDegree = 5;
  static constexpr Chain kChain = Chain::kBlock;
  static constexpr int kGroupKeys = 16 * kBlockN;  ///< what GroupSums adds up at a time
  // 32 registers: 24 accumulators; 16 registers: 12. What was tried: benchmarks/cpu.md.
#if defined(__AVX512F__)
  static constexpr int kVectors = 4, kKeys = 6, kDims = 6;
#else
  static constexpr int kVectors = 2, kKeys = 6, kDims = 6;
#endif
};

template <>
struct ElementTraits<Fp16> : ElementTraits<float> {
  using Element = Fp16;
  static constexpr int kExpDegree = 4;
  static constexpr int kGroupKeys = 32 * kBlockN;
};

template <>
struct ElementTraits<Bf16> : ElementTraits<float> {
  using Element = Bf16;
  static constexpr int kExpDegree = 3;
  static constexpr int kGroupKeys = 32 * kBlockN;
#if defined(__AMX_BF16__)
  static constexpr Product kProduct = Product::kBf16Tile;  // adds 32 keys to o at a time
  static constexpr Chain kChain = Chain::kGroup;
  static constexpr int kVectors = 2;
#elif defined(__AVX512BF16__)
  static constexpr Product kProduct = Product::kBf16Pair;
  static constexpr Chain kChain = Chain::kGroup;
  static constexpr int kVectors = 2, kKeys = 8, kDims = 8;
#endif
};

/// One kernel takes every layout and every variant: what is asked of a block of keys costs nothing
/// beside its products (benchmarks/cpu.md).
template <class Element>
struct Traits : ElementTraits<Element> {
  using KvLayout = AnyKv;
  using Scores = GeneralScores;
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
