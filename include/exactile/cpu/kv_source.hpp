// exactile/cpu/kv_source.hpp - where the keys and values of a block come from.
//
// fp32 is read where it lies in the packed tensors. 16-bit K and V are brought into the
// micro-kernel's layout first: widened to fp32, or V's keys interleaved in pairs, or copied for
// tile registers.
//
// A probability of 0 times Inf or NaN is NaN: where V holds one, a row would depend on a key that
// is masked for it. A tile that ends with one in its sums is computed again with V's Inf and NaN
// left out here and added by the mainloop, to the rows that see them.
#pragma once

#include <exactile/cpu/scratch.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

/// A block of keys as the micro-kernel takes it: K as (key, d), V as (d, key).
template <class Traits>
struct KvBlock {
  typename MicroKernel<Traits>::Broadcast k, v;
};

/// The keys and values of one sequence and kv head.
template <class Traits>
class KvSource {
  using Element = typename Traits::Element;
  using Kernel = MicroKernel<Traits>;
  using Scalar = typename Kernel::Scalar;
  using Broadcast = typename Kernel::Broadcast;
  static constexpr int kPerScalar = Kernel::Operand::kPerScalar;
  using Rows = typename Traits::KvLayout::template Rows<Element>;
  static constexpr bool kWiden = Traits::kProduct == Product::kFloat && sizeof(Element) == 2;
  static constexpr bool kTiles = Traits::kProduct == Product::kBf16Tile;

 public:
  KvSource(const PrefillParams& params, const TileRecord& record, int kv_head,
           Scratch<Traits>& scratch)
      : params_(params),
        k_(params.k, params.pages, record.k_begin, kv_head),
        v_(params.v, params.pages, record.k_begin, kv_head),
        k_len_(record.k_len),
        scratch_(scratch) {
    Staged& staged = scratch.staged;
    if (staged.k_begin != record.k_begin || staged.kv_head != kv_head) {
      staged = {.k_begin = record.k_begin, .kv_head = kv_head};
    }
  }

  /// From now on V has 0 in place of Inf and NaN.
  void leave_out_not_finite() {
    finite_only_ = true;
    scratch_.staged.n1 = scratch_.staged.n0 = 0;
  }
  bool finite_only() const { return finite_only_; }

  /// Brings keys [n0, n1), as far as they exist, into the second-level cache. Inlined always: gcc
  /// drops a call of a function that does nothing else, which it takes for one without effect.
  EXACTILE_INLINE void prefetch(int n0, int n1) const {
    for (int n = n0; n < min(n1, k_len_); ++n) {
      prefetch_row(k_[n], params_.head_dim);
      prefetch_row(v_[n], params_.head_dim_v);
    }
  }

  /// V of a key of the sequence as it is, Inf and NaN included: (Dv,).
  const Element* value(int n) const { return v_[n]; }

  /// The block of keys [n0, n0 + kBlockN), as far as they exist.
  KvBlock<Traits> block(int n0) const {
    const int n1 = min(n0 + kBlockN, k_len_);
    if (finite_only_) {
      // In one block's place, and not kept.
      return {stage_keys(n0, n1, scratch_.k), stage_finite_values(n0, n1, scratch_.v)};
    }
    if constexpr (!Scratch<Traits>::kKeepStaged) {
      return {stage_keys(n0, n1, scratch_.k), stage_values(n0, n1, scratch_.v)};
    } else {
      Scalar* const k = scratch_.k + int64_t{n0} * params_.head_dim / kPerScalar;
      Scalar* const v = scratch_.v + int64_t{n0} * params_.head_dim_v / kPerScalar;
      Staged& staged = scratch_.staged;
      if (staged.n0 <= n0 && n0 < staged.n1) {
        return {{k, params_.head_dim / kPerScalar, 1}, {v, kBlockN / kPerScalar, 1}};
      }
      if (staged.n1 != n0) staged.n0 = n0;  // what is kept is one run of blocks
      staged.n1 = n0 + kBlockN;
      return {stage_keys(n0, n1, k), stage_values(n0, n1, v)};
    }
  }

 private:
  struct Run {
    const Element* first;
    int64_t stride;
  };
  /// Rows [n0, n1) at one stride: where they lie, else gathered.
  static Run run_of(const Rows& rows, int n0, int n1, int head_dim, void* buffer) {
    if (rows.is_run(n0, n1)) return {rows[n0], rows.stride()};
    auto* const to = static_cast<Element*>(buffer);
    for (int n = n0; n < n1; ++n) {
      __builtin_memcpy(to + (n - n0) * head_dim, rows[n], head_dim * sizeof(Element));
    }
    return {to, head_dim};
  }

  Broadcast stage_keys(int n0, int n1, Scalar* to) const {
    const auto [k, stride] = run_of(k_, n0, n1, params_.head_dim, scratch_.gathered_k);
    const int pitch = params_.head_dim / kPerScalar;
    if constexpr (kWiden) {
      widen_rows(k, stride, n1 - n0, params_.head_dim, to);
      return {to, pitch, 1};
    } else if constexpr (kPerScalar == 2) {
      // A pair (d, d + 1) is a 32-bit word where it lies; an odd token stride has to be copied.
      // Tiles are copied always: whole ones are read, and rows a power of 2 apart share cache sets.
      if (!kTiles && stride % 2 == 0) {
        return {reinterpret_cast<const Scalar*>(k), stride / 2, 1};
      }
      for (int n = 0; n < n1 - n0; ++n) {
        for (int d = 0; d < params_.head_dim; d += 2 * kLanes) {
          store(to + n * pitch + d / 2, load<Words>(k + n * stride + d));
        }
      }
      return {to, pitch, 1};
    } else {
      return {k, stride, 1};
    }
  }

  Broadcast stage_finite_values(int n0, int n1, Scalar* to) const {
    const int head_dim = params_.head_dim_v;
    auto* const finite = static_cast<Element*>(scratch_.finite_v);
    for (int n = n0; n < n1; ++n) {
      const Element* const v = value(n);
      bool all_finite = true;
      for (int d = 0; d < head_dim; ++d) {
        all_finite &= is_finite(v[d]);
        finite[(n - n0) * head_dim + d] = is_finite(v[d]) ? v[d] : Element{};
      }
      scratch_.all_finite[n - n0] = all_finite;
    }
    return stage_values(finite, head_dim, n1 - n0, to);
  }

  Broadcast stage_values(int n0, int n1, Scalar* to) const {
    const Run run = run_of(v_, n0, n1, params_.head_dim_v, scratch_.gathered_v);
    return stage_values(run.first, run.stride, n1 - n0, to);
  }

  /// `keys` rows of V, `stride` apart.
  Broadcast stage_values(const Element* v, int64_t stride, int keys, Scalar* to) const {
    const int head_dim = params_.head_dim_v;
    if constexpr (kWiden) {
      widen_rows(v, stride, keys, head_dim, to);
      return {to, 1, head_dim};
    } else if constexpr (kTiles) {
      transpose_values(v, stride, keys, head_dim, to);
      return {to, kBlockN / 2, 1};
    } else if constexpr (kPerScalar == 2) {
      for (int n = 0; n < keys; n += 2) {
        for (int d = 0; d < head_dim; d += kLanes) {
          store(to + n / 2 * head_dim + d, key_pair(v + d, stride, n, keys));
        }
      }
      return {to, 1, head_dim};
    } else {
      return {v, 1, stride};
    }
  }

  static void widen_rows(const Element* from, int64_t stride, int rows, int head_dim, float* to) {
    for (int r = 0; r < rows; ++r) {
      for (int d = 0; d < head_dim; d += kLanes) {
        store(to + r * head_dim + d, to_floats(from + r * stride + d));
      }
    }
  }

  /// Keys n and n + 1 of v[.., d, d + kLanes) in one word each; a key past the last is 0.
  EXACTILE_INLINE static Words key_pair(const Element* v, int64_t stride, int n, int num_keys) {
    const Words even = n < num_keys ? widen(v + n * stride) : Words{};
    const Words odd = n + 1 < num_keys ? widen(v + (n + 1) * stride) : Words{};
    return even | odd << 16;
  }

  /// (Dv, kBlockN / 2 key pairs), up to a whole number of tiles.
  static void transpose_values(const Element* v, int64_t stride, int num_keys, int head_dim,
                               Scalar* to) {
    for (int n = 0; n < num_keys; n += 2 * kLanes) {
      for (int d = 0; d < head_dim; d += kLanes) {
        Words x[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) x[i] = key_pair(v + d, stride, n + 2 * i, num_keys);
        transpose(x);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + (d + i) * (kBlockN / 2) + n / 2, x[i]);
      }
    }
  }

  const PrefillParams& params_;
  const Rows k_, v_;
  const int k_len_;
  Scratch<Traits>& scratch_;
  bool finite_only_ = false;
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
