// exactile/cpu/scratch.hpp - the working memory of one worker.
#pragma once

#include <exactile/cpu/micro_kernel.hpp>
#include <exactile/cpu/micro_kernel_amx.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

/// Brings a row into the second-level cache.
template <class Element>
EXACTILE_INLINE void prefetch_row(const Element* row, int size) {
  for (int d = 0; d < size; d += 64 / static_cast<int>(sizeof(Element))) {
    __builtin_prefetch(row + d, 0, 2);
  }
}

/// Working memory of one worker, carved out of one 64-byte aligned buffer.
template <class Traits>
struct Scratch {
  using Scalar = typename MicroKernel<Traits>::Scalar;
  static constexpr int kPanel = MicroKernel<Traits>::kPanel;
  static constexpr int kPanels = (kBlockM + kPanel - 1) / kPanel;
  static constexpr int kRows = kPanels * kPanel;
  /// What is loaded, copied and transposed at a time of a row of q or k, and stored of one of out:
  /// a vector of operands, a cache line. src/cpu/kernels.cpp checks support.def's rows.
  static constexpr int kHeadDimStep = kLanes * MicroKernel<Traits>::Operand::kPerScalar;
  static constexpr int kHeadDimVStep = max<int>(kLanes, 64 / sizeof(typename Traits::Element));
  /// Copies for tile registers cost a quarter of the time, so they are kept for a worker's next
  /// tiles of the same sequence and head. Other copies are cheap: one block at a time.
  static constexpr bool kKeepStaged = Traits::kProduct == Product::kBf16Tile;

  Staged staged;  ///< what k and v hold
  /// Reference of the softmax, a raw score; -inf before the first key. Arrays begin at cache lines
  /// (benchmarks/cpu.md).
  alignas(64) float row_max[kRows];
  float row_sum[kRows];
  int key_begin[kRows], key_end[kRows];  ///< keys visible to the row; both ascend with the row
  float slope[kRows];                    ///< of variants of the scores: what they know of a row,
  int position[kRows];                   ///< and its own among the keys
  alignas(64) float s[kBlockN * kPanel];
  bool is_empty[kPanels];  ///< o of the panel holds nothing yet
  Scalar* q;
  Scalar* k;  ///< (block, key, D) as the micro-kernel wants a block
  Scalar* v;  ///< (block, key, Dv) likewise
  float* o;
  void* finite_v;                 ///< (kBlockN, Dv) Elements, for V with Inf and NaN
  void *gathered_k, *gathered_v;  ///< (kBlockN, D or Dv) Elements, where rows lie in several runs
  bool all_finite[kBlockN];       ///< whether V of a key has none, of the block in finite_v
  float *total, *lost;  ///< o of the groups of blocks before, and what their sum rounds away
  /// Likewise of row_max and row_sum.
  float total_max[kRows], total_sum[kRows], lost_sum[kRows];

  /// Bytes of the whole buffer.
  static int64_t bytes(const PrefillParams& params) {
    const int64_t q_and_o = int64_t{kRows} * (params.head_dim / kPerScalar + params.head_dim_v);
    const int64_t k_and_v = staged_size(params, params.head_dim + params.head_dim_v);
    const int64_t gathered =
        gathered_size(params, params.head_dim) + gathered_size(params, params.head_dim_v);
    return (header_floats() + q_and_o + k_and_v + finite_v_size(params) + 2 * total_size(params) +
            gathered) *
           4;
  }
  static Scratch& place(void* buffer, const PrefillParams& params) {
    auto& scratch = *static_cast<Scratch*>(buffer);
    scratch.o = static_cast<float*>(buffer) + header_floats();
    scratch.q = reinterpret_cast<Scalar*>(scratch.o + int64_t{kRows} * params.head_dim_v);
    scratch.k = scratch.q + int64_t{kRows} * params.head_dim / kPerScalar;
    scratch.v = scratch.k + staged_size(params, params.head_dim);
    scratch.finite_v = scratch.v + staged_size(params, params.head_dim_v);
    scratch.total = static_cast<float*>(scratch.finite_v) + finite_v_size(params);
    scratch.lost = scratch.total + total_size(params);
    float* const gathered = scratch.lost + total_size(params);
    scratch.gathered_k = gathered;
    scratch.gathered_v = gathered + gathered_size(params, params.head_dim);
    return scratch;
  }

 private:
  static constexpr int kPerScalar = MicroKernel<Traits>::Operand::kPerScalar;

  static constexpr int64_t header_floats() { return (sizeof(Scratch) + 63) / 64 * 16; }
  static int64_t gathered_size(const PrefillParams& params, int head_dim) {
    if (params.pages.page_size == 0) return 0;
    return int64_t{kBlockN} * head_dim * sizeof(typename Traits::Element) / 4;
  }
  static int64_t finite_v_size(const PrefillParams& params) {
    return int64_t{kBlockN} * params.head_dim_v * sizeof(typename Traits::Element) / 4;
  }
  static int64_t total_size(const PrefillParams& params) {
    const bool one_group = params.max_len_k <= Traits::kGroupKeys;
    return one_group ? 0 : int64_t{kRows} * params.head_dim_v;
  }
  static int64_t staged_size(const PrefillParams& params, int head_dim) {
    const int64_t blocks = kKeepStaged ? ceil_div(params.max_len_k, kBlockN) : 1;
    return blocks * kBlockN * head_dim / kPerScalar;
  }
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
