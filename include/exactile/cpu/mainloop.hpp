// exactile/cpu/mainloop.hpp - one query tile against its keys: QK^T, mask, online softmax, PV.
//
// Lanes are query rows. Letters: P panel rows (fastest), D head_dim, Dv head_dim_v, N keys of a block.
//   q    (panel, D, P)   operand, Q transposed once per tile
//   o    (panel, Dv, P)  fp32, not yet divided by the row sum
//   s    (N, P)          fp32 scores, then probabilities (operand)
// K and V are read where they lie in the packed tensors; 16-bit ones are first widened, or V's keys
// interleaved in pairs, once per block for all panels. Key blocks start at multiples of kBlockN from
// the sequence's first key whatever the tile, and every row is computed alone in its lane: so a row's
// result does not depend on the tile it is in (arXiv:2205.14135 Alg. 1 for the recurrence).
#pragma once

#include <exactile/cpu/micro_kernel.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

/// Working memory of one worker, carved out of one 64-byte aligned buffer.
template <class Traits>
struct Scratch {
  using Scalar = typename MicroKernel<Traits>::Scalar;
  static constexpr int kPanel = MicroKernel<Traits>::kPanel;
  static constexpr int kPanels = (kBlockM + kPanel - 1) / kPanel;
  static constexpr int kRows = kPanels * kPanel;

  float row_max[kRows];  ///< of the raw scores, -inf before the first key
  float row_sum[kRows];
  int key_begin[kRows], key_end[kRows];  ///< keys visible to the row; both ascend with the row
  float s[kBlockN * kPanel];
  bool fresh[kPanels];  ///< o of the panel holds nothing yet
  Scalar *q, *k, *v;
  float* o;

  /// Bytes of the whole buffer for these head dims.
  static int64_t bytes(int head_dim, int head_dim_v) {
    const int64_t floats = int64_t{kRows + kBlockN} * (head_dim + head_dim_v);
    return (sizeof(Scratch) + 63) / 64 * 64 + floats * 4;
  }
  static Scratch& place(void* buffer, int head_dim, int head_dim_v) {
    auto& scratch = *static_cast<Scratch*>(buffer);
    auto* next = static_cast<float*>(buffer) + (sizeof(Scratch) + 63) / 64 * 16;
    auto take = [&next](int floats) {
      float* const taken = next;
      next += floats;
      return taken;
    };
    scratch.o = take(kRows * head_dim_v);
    scratch.q = reinterpret_cast<Scalar*>(take(kRows * head_dim));
    scratch.k = reinterpret_cast<Scalar*>(take(kBlockN * head_dim));
    scratch.v = reinterpret_cast<Scalar*>(take(kBlockN * head_dim_v));
    return scratch;
  }
};

template <class Traits>
class Mainloop {
  using Element = typename Traits::Element;
  using Kernel = MicroKernel<Traits>;
  using Scalar = typename Kernel::Scalar;
  using Broadcast = typename Kernel::Broadcast;
  static constexpr int kPerScalar = Kernel::Operand::kPerScalar;
  static constexpr int kPanel = Kernel::kPanel;
  static constexpr bool kWiden = Traits::kProduct == Product::kFloat && sizeof(Element) == 2;

 public:
  /// Accumulates the tile's rows over the keys that they see. q, key_begin and key_end are filled, up
  /// to the end of the last panel.
  /// k, v: first key of the sequence, of the tile's kv head.
  static void run(const PrefillParams& params, const Element* k, const Element* v, int rows,
                  Scratch<Traits>& scratch) {
    const int panels = (rows + kPanel - 1) / kPanel;
    const KeyRange keys{scratch.key_begin[0], scratch.key_end[rows - 1]};
    for (int p = 0; p < panels; ++p) scratch.fresh[p] = true;
    for (int r = 0; r < panels * kPanel; ++r) {
      scratch.row_max[r] = -__builtin_inff();
      scratch.row_sum[r] = 0;
    }
    for (int n0 = keys.begin / kBlockN * kBlockN; n0 < keys.end; n0 += kBlockN) {
      const int n1 = min(n0 + kBlockN, keys.end);
      const Broadcast k_block = stage_keys(params, k, n0, n1, scratch);
      const Broadcast v_block = stage_values(params, v, n0, n1, scratch);
      for (int p = 0; p < panels; ++p) {
        const int vectors = min((rows - p * kPanel + kLanes - 1) / kLanes, Traits::kVectors);
        dispatch<Traits::kVectors>(vectors, params, k_block, v_block, n0, n1, p, scratch);
      }
    }
  }

 private:
  /// K of keys [n0, n1) as (key, d).
  static Broadcast stage_keys(const PrefillParams& params, const Element* k, int n0, int n1,
                              Scratch<Traits>& scratch) {
    const int64_t stride = params.k.token_stride;
    if constexpr (kWiden) {
      widen_rows(k + n0 * stride, stride, n1 - n0, params.head_dim, scratch.k);
      return {scratch.k, params.head_dim, 1};
    } else if constexpr (kPerScalar == 2) {
      // A pair (d, d + 1) is a 32-bit word where it lies; an odd token stride has to be copied.
      if (stride % 2 == 0) return {reinterpret_cast<const Scalar*>(k + n0 * stride), stride / 2, 1};
      for (int n = n0; n < n1; ++n) {
        __builtin_memcpy(scratch.k + (n - n0) * (params.head_dim / 2), k + n * stride,
                         params.head_dim * sizeof(Element));
      }
      return {scratch.k, params.head_dim / 2, 1};
    } else {
      return {k + n0 * stride, stride, 1};
    }
  }

  /// V of keys [n0, n1) as (d, key).
  static Broadcast stage_values(const PrefillParams& params, const Element* v, int n0, int n1,
                                Scratch<Traits>& scratch) {
    const int64_t stride = params.v.token_stride;
    const int head_dim = params.head_dim_v;
    if constexpr (kWiden) {
      widen_rows(v + n0 * stride, stride, n1 - n0, head_dim, scratch.v);
      return {scratch.v, 1, head_dim};
    } else if constexpr (kPerScalar == 2) {
      for (int n = n0; n < n1; n += 2) {
        const Element* const even = v + n * stride;
        const bool odd_exists = n + 1 < n1;
        for (int d = 0; d < head_dim; d += kLanes) {
          const Words odd = odd_exists ? widen(even + stride + d) : Words{};
          store(scratch.v + (n - n0) / 2 * head_dim + d, widen(even + d) | odd << 16);
        }
      }
      return {scratch.v, 1, head_dim};
    } else {
      return {v + n0 * stride, 1, stride};
    }
  }

  static void widen_rows(const Element* from, int64_t stride, int rows, int head_dim, float* to) {
    for (int r = 0; r < rows; ++r) {
      for (int d = 0; d < head_dim; d += kLanes) {
        store(to + r * head_dim + d, to_floats(from + r * stride + d));
      }
    }
  }

  template <int kVecs>
  EXACTILE_INLINE static void dispatch(int vectors, const PrefillParams& params,
                                       const Broadcast& k, const Broadcast& v, int n0, int n1,
                                       int panel, Scratch<Traits>& scratch) {
    if constexpr (kVecs > 1) {
      if (vectors < kVecs) {
        return dispatch<kVecs - 1>(vectors, params, k, v, n0, n1, panel, scratch);
      }
    }
    attend<kVecs>(params, k, v, n0, n1, panel, scratch);
  }

  /// Keys [n0, n1) against one panel of kVecs vectors of rows.
  template <int kVecs>
  __attribute__((noinline)) static void attend(const PrefillParams& params, Broadcast k,
                                               Broadcast v, int n0, int n1, int panel,
                                               Scratch<Traits>& scratch) {
    const int row = panel * kPanel;
    const int* const key_begin = scratch.key_begin + row;
    const int* const key_end = scratch.key_end + row;
    // The first row bounds the begin and the last row the end.
    const int first_key = max(n0, key_begin[0]) / 2 * 2;
    const int last_key = min(n1, key_end[kVecs * kLanes - 1]);
    if (first_key >= last_key) return;
    const int num_keys = last_key - first_key;
    const bool border = first_key < key_begin[kVecs * kLanes - 1] || last_key > key_end[0];
    k.data += (first_key - n0) * k.row_stride;
    v.data += (first_key - n0) / kPerScalar * v.k_stride;

    float* const s = scratch.s;
    const Scalar* const q = scratch.q + int64_t{row} * params.head_dim / kPerScalar;
    Kernel::template scores<kVecs>(k, q, params.head_dim / kPerScalar, 0, num_keys, s);
    if (border) mask<kVecs>(key_begin, key_end, first_key, num_keys, s);
    Floats alpha[kVecs];
    softmax<kVecs>(params.scale_log2, num_keys, scratch.row_max + row, scratch.row_sum + row, s,
                   alpha);
    Kernel::template values<kVecs>(v, reinterpret_cast<const Scalar*>(s),
                                   (num_keys + kPerScalar - 1) / kPerScalar, 0, params.head_dim_v,
                                   alpha, scratch.fresh[panel],
                                   scratch.o + int64_t{row} * params.head_dim_v);
    scratch.fresh[panel] = false;
  }

  template <int kVecs>
  EXACTILE_INLINE static void mask(const int* key_begin, const int* key_end, int first_key,
                                   int num_keys, float* s) {
    for (int v = 0; v < kVecs; ++v) {
      const Ints begin = load<Ints>(key_begin + v * kLanes) - first_key;
      const Ints end = load<Ints>(key_end + v * kLanes) - first_key;
      for (int n = 0; n < num_keys; ++n) {
        float* const at = s + n * kPanel + v * kLanes;
        const Ints visible = (begin <= splat(n)) & (splat(n) < end);
        store(at, visible ? load<Floats>(at) : splat(-__builtin_inff()));
      }
    }
  }

  /// Turns raw scores into probabilities relative to the new row maximum; alpha is what the sums so
  /// far have to be multiplied with. -inf - -inf never happens: a row without a key has offset 0.
  template <int kVecs>
  EXACTILE_INLINE static void softmax(float scale, int num_keys, float* row_max, float* row_sum,
                                      float* s, Floats (&alpha)[kVecs]) {
    Floats offset[kVecs], sum[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const Floats before = load<Floats>(row_max + v * kLanes);
      Floats now = before;
      for (int n = 0; n < num_keys; ++n) now = lane_max(now, load<Floats>(s + n * kPanel + v * kLanes));
      store(row_max + v * kLanes, now);
      offset[v] = now > splat(-__builtin_inff()) ? now * scale : Floats{};
      // Exactly 1 where the maximum stays, so that a block which a row does not see changes no bit.
      alpha[v] = before == now ? splat(1.0f) : exp2_nonpositive<5>((before - now) * scale);
      sum[v] = Floats{};
    }
    auto probability = [&](int n, int v) EXACTILE_LAMBDA_INLINE {
      const Floats raw = load<Floats>(s + n * kPanel + v * kLanes);
      return exp2_nonpositive<Traits::kExpDegree>(raw * scale - offset[v]);
    };
    for (int n = 0; n < num_keys; n += kPerScalar) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        const Floats even = probability(n, v);
        if constexpr (kPerScalar == 2) {
          const Floats odd = n + 1 < num_keys ? probability(n + 1, v) : Floats{};
          sum[v] += even + odd;
          store(reinterpret_cast<unsigned*>(s) + n / 2 * kPanel + v * kLanes,
                pair_bf16(even, odd));
        } else {
          sum[v] += even;
          store(s + n * kPanel + v * kLanes, even);
        }
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      float* const at = row_sum + v * kLanes;
      store(at, load<Floats>(at) * alpha[v] + sum[v]);
    }
  }
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
