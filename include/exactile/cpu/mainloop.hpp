// exactile/cpu/mainloop.hpp - one query tile against its keys: QK^T, mask, online softmax, PV.
//
// Lanes are query rows. Letters: P panel rows (fastest), D head_dim, Dv head_dim_v, N keys of a
// block.
//   q    (panel, D, P)   operand, Q transposed once per tile
//   o    (panel, Dv, P)  fp32, not yet divided by the row sum
//   s    (N, P)          fp32 scores, then probabilities (operand)
// Key blocks start at multiples of kBlockN from the sequence's first key whatever the tile, and
// every row is computed alone in its lane: so a row's result does not depend on the tile it is in
// (arXiv:2205.14135 Alg. 1 for the recurrence).
#pragma once

#include <exactile/cpu/group_sums.hpp>
#include <exactile/cpu/kv_source.hpp>
#include <exactile/cpu/prefetch.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

template <class Traits>
class Mainloop {
  using Kernel = MicroKernel<Traits>;
  using Scalar = typename Kernel::Scalar;
  static constexpr int kPerScalar = Kernel::Operand::kPerScalar;
  static constexpr int kPanel = Kernel::kPanel;
  static constexpr int kKeyStep = Kernel::kKeyStep;

 public:
  /// `source` gives the tile's keys; `next.step()` is called now and then.
  EXACTILE_INLINE Mainloop(const PrefillParams& params, const KvSource<Traits>& source,
                           Scratch<Traits>& scratch, Prefetch<Traits>& next)
      : params_(params),
        scale_(params.scale_log2),
        source_(source),
        scratch_(scratch),
        next_(next) {}

  /// Accumulates the tile's rows over the keys that they see. q, key_begin and key_end are filled,
  /// up to the end of the last panel.
  void run(int rows) {
    const int panels = ceil_div(rows, kPanel);
    const KeyRange keys{scratch_.key_begin[0], scratch_.key_end[rows - 1]};
    for (int p = 0; p < panels; ++p) scratch_.is_empty[p] = true;
    for (int r = 0; r < panels * kPanel; ++r) {
      scratch_.row_max[r] = -__builtin_inff();
      scratch_.row_sum[r] = 0;
    }
    GroupSums<Traits> groups(params_, rows, scratch_);
    for (int n0 = keys.begin / kBlockN * kBlockN; n0 < keys.end; n0 += kBlockN) {
      if (n0 % Traits::kGroupKeys == 0 && n0 > keys.begin) groups.end_group();
      const int n1 = min(n0 + kBlockN, keys.end);
      // One panel is soon computed: what comes next has to be under way.
      ahead_ = panels == 1 ? KeyRange{n1, min(n1 + kBlockN, keys.end)} : KeyRange{0, 0};
      const KvBlock<Traits> block = source_.block(n0);
      for (int p = 0; p < panels; ++p) {
        const int vectors = min(ceil_div(rows - p * kPanel, kLanes), Traits::kVectors);
        dispatch<Traits::kVectors>(vectors, block, n0, n1, p);
      }
    }
    groups.finish();
    if (source_.finite_only()) canonicalize_nans(rows);
  }

 private:
  /// Between two steps of a micro-kernel, of which a block and panel has 30 or, with tile
  /// registers, 6: no more lines at a time than can be under way.
  EXACTILE_INLINE void fetch_ahead() {
    constexpr int kKeys = Traits::kProduct == Product::kBf16Tile ? 11 : 2;
    if (ahead_.begin >= ahead_.end) return;
    source_.prefetch(ahead_.begin, min(ahead_.begin + kKeys, ahead_.end));
    ahead_.begin += kKeys;
  }

  template <int kVecs>
  EXACTILE_INLINE void dispatch(int vectors, const KvBlock<Traits>& block, int n0, int n1,
                                int panel) {
    if constexpr (kVecs > 1) {
      if (vectors < kVecs) return dispatch<kVecs - 1>(vectors, block, n0, n1, panel);
    }
    attend<kVecs>(block, n0, n1, panel);
  }

  /// Keys [n0, n1) against one panel of kVecs vectors of rows.
  template <int kVecs>
  __attribute__((noinline)) void attend(KvBlock<Traits> block, int n0, int n1, int panel) {
    const int row = panel * kPanel;
    const int* const key_begin = scratch_.key_begin + row;
    const int* const key_end = scratch_.key_end + row;
    // The first row bounds the begin and the last row the end.
    const int first_key = max(n0, key_begin[0]) / kKeyStep * kKeyStep;
    const int last_key = min(n1, key_end[kVecs * kLanes - 1]);
    if (first_key >= last_key) return;
    const int num_keys = last_key - first_key;
    const bool needs_mask = first_key < key_begin[kVecs * kLanes - 1] || last_key > key_end[0];
    block.k.data += (first_key - n0) * block.k.row_stride;
    block.v.data += (first_key - n0) / kPerScalar * block.v.k_stride;

    float* const s = scratch_.s;
    const Scalar* const q = scratch_.q + int64_t{row} * params_.head_dim / kPerScalar;
    Kernel::template scores<kVecs>(block.k, q, params_.head_dim / kPerScalar, num_keys, s,
                                   [&] { fetch_ahead(); });
    next_.step();
    if (params_.scores.change()) change<kVecs>(row, first_key, num_keys, s);
    if (needs_mask) mask<kVecs>(key_begin, key_end, first_key, num_keys, s);
    Floats alpha[kVecs];
    softmax<kVecs>(scale_, num_keys, scratch_.row_max + row, scratch_.row_sum + row, s, alpha);
    next_.step();
    Kernel::template values<kVecs>(
        block.v, reinterpret_cast<const Scalar*>(s), ceil_div(num_keys, kPerScalar),
        params_.head_dim_v, alpha, scratch_.is_empty[panel],
        scratch_.o + int64_t{row} * params_.head_dim_v, [&] { fetch_ahead(); });
    scratch_.is_empty[panel] = false;
    if (source_.finite_only()) {
      for (int n = 0; n < num_keys; ++n) {
        if (!scratch_.all_finite[first_key - n0 + n]) add_not_finite<kVecs>(first_key, n, panel);
      }
    }
    next_.step();
  }

  /// Adds what V has of Inf and NaN at key first_key + n to the rows that see it.
  template <int kVecs>
  void add_not_finite(int first_key, int n, int panel) {
    const auto* const v = source_.value(first_key + n);  // (Dv,)
    for (int i = 0; i < kVecs; ++i) {
      const int lane = i * kLanes, row = panel * kPanel + lane;
      const Ints key = splat(first_key + n);
      const Ints visible = (load<Ints>(scratch_.key_begin + row) <= key) &
                           (key < load<Ints>(scratch_.key_end + row));
      const Floats p = probability_of(scratch_.s, n, lane);
      float* const o = scratch_.o + int64_t{panel} * kPanel * params_.head_dim_v + lane;
      for (int d = 0; d < params_.head_dim_v; ++d) {
        if (is_finite(v[d])) continue;
        const Floats before = load<Floats>(o + d * kPanel);
        store(o + d * kPanel, visible ? fma(p, splat(to_float(v[d])), before) : before);
      }
    }
  }

  /// The payload of a NaN depends on the order of operands, which the compiler chooses.
  void canonicalize_nans(int rows) {
    const int64_t size = int64_t{ceil_div(rows, kPanel)} * kPanel * params_.head_dim_v;
    for (int64_t i = 0; i < size; i += kLanes) {
      const Floats x = load<Floats>(scratch_.o + i);
      store(scratch_.o + i, x == x ? x : splat(kNan));
    }
  }

  /// Of key n, as the product with V reads it.
  EXACTILE_INLINE static Floats probability_of(const float* s, int n, int lane) {
    if constexpr (kPerScalar == 1) {
      return load<Floats>(s + n * kPanel + lane);
    } else {
      const Words pair = load<Words>(s + n / 2 * kPanel + lane);
      return (Floats)(n % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
  }

  template <int kVecs>
  __attribute__((noinline)) void change(int row, int first_key, int num_keys, float* s) const {
    for (int v = 0; v < kVecs; ++v) {
      const Floats slope = load<Floats>(scratch_.slope + row + v * kLanes);
      const Ints position = load<Ints>(scratch_.position + row + v * kLanes) - first_key;
      for (int n = 0; n < num_keys; ++n) {
        float* const at = s + n * kPanel + v * kLanes;
        const Ints to_the_right = n - position;
        const Floats distance =
            __builtin_convertvector(to_the_right < 0 ? -to_the_right : to_the_right, Floats);
        store(at, Traits::Scores::template change<Math>(params_.scores, load<Floats>(at), slope,
                                                        distance));
      }
    }
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

  /// Maximum over the block's keys, on four chains to hide the latency.
  EXACTILE_INLINE static Floats max_of_keys(const float* s, int num_keys) {
    const auto at = [s](int n) { return load<Floats>(s + n * kPanel); };
    Floats a = at(0), b = a, c = a, d = a;
    int n = 1;
    for (; n + 4 <= num_keys; n += 4) {
      a = lane_max(a, at(n));
      b = lane_max(b, at(n + 1));
      c = lane_max(c, at(n + 2));
      d = lane_max(d, at(n + 3));
    }
    for (; n < num_keys; ++n) a = lane_max(a, at(n));
    return lane_max(lane_max(a, b), lane_max(c, d));
  }

  /// Turns raw scores into probabilities relative to the row's reference; alpha is what the sums so
  /// far have to be multiplied with. The reference follows the maximum only when that has grown by
  /// more than a factor of 2^8, so that alpha is mostly 1 and no probability exceeds 2^8. -inf -
  /// -inf never happens: a row without a key has offset 0.
  template <int kVecs>
  EXACTILE_INLINE static void softmax(ExpScale scale, int num_keys, float* row_max, float* row_sum,
                                      float* s, Floats (&alpha)[kVecs]) {
    Floats reference[kVecs], sum[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const Floats before = load<Floats>(row_max + v * kLanes);
      const Floats highest = max_of_keys(s + v * kLanes, num_keys);
      const Ints moves = (highest - before) * scale.factor > splat(8.0f);
      const Floats now = moves ? highest : before;
      store(row_max + v * kLanes, now);
      reference[v] = now > splat(-__builtin_inff()) ? now : Floats{};
      // Exactly 1 where the reference stays: a block that a row does not see changes no bit of it.
      alpha[v] = moves ? exp2<5>(before - now, scale) : splat(1.0f);
      sum[v] = Floats{};
    }
    auto probability = [&](int n, int v) EXACTILE_LAMBDA_INLINE {
      const Floats raw = load<Floats>(s + n * kPanel + v * kLanes);
      return exp2<Traits::kExpDegree>(raw - reference[v], scale);
    };
    for (int n = 0; n < num_keys; n += kPerScalar) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        const Floats even = probability(n, v);
        if constexpr (kPerScalar == 2) {
          const Floats odd = n + 1 < num_keys ? probability(n + 1, v) : Floats{};
          sum[v] += even + odd;
          store(reinterpret_cast<unsigned*>(s) + n / 2 * kPanel + v * kLanes, pair_bf16(even, odd));
        } else {
          sum[v] += even;
          store(s + n * kPanel + v * kLanes, even);
        }
      }
    }
    for (int n = ceil_div(num_keys, kPerScalar); n * kPerScalar % kKeyStep != 0; ++n) {
      for (int v = 0; v < kVecs; ++v) store(s + n * kPanel + v * kLanes, Floats{});
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      float* const at = row_sum + v * kLanes;
      store(at, fma(load<Floats>(at), alpha[v], sum[v]));
    }
  }

  const PrefillParams& params_;
  const ExpScale scale_;
  const KvSource<Traits>& source_;
  Scratch<Traits>& scratch_;
  Prefetch<Traits>& next_;
  KeyRange ahead_{};  ///< keys to be fetched meanwhile
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
