// exactile/cpu/group_sums.hpp - the sums of a long sequence without a long chain of additions.
//
// o and row_sum run over a group of key blocks at a time. At a group's end they go into totals that
// keep what each addition rounds away (Knuth's two-sum), so the error does not grow with the number
// of groups. Groups begin at fixed keys of the sequence: which tile a row is in changes no bit.
#pragma once

#include <exactile/cpu/scratch.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

template <class Traits>
class GroupSums {
  static constexpr int kPanel = Scratch<Traits>::kPanel;

 public:
  /// Before a tile's first group ends. `vectors`: of rows that the tile has.
  static void clear(const PrefillParams& params, int vectors, Scratch<Traits>& scratch) {
    for_each_vector(params, vectors, [&](int row, int64_t at) {
      store(scratch.total_max + row, splat(-__builtin_inff()));
      store(scratch.total_sum + row, Floats{});
      store(scratch.lost_sum + row, Floats{});
      for (int d = 0; d < params.head_dim_v; ++d) {
        store(scratch.total + at + d * kPanel, Floats{});
        store(scratch.lost + at + d * kPanel, Floats{});
      }
    });
  }

  /// At the end of a group: total += o, for the panels that have one.
  static void add(const PrefillParams& params, int vectors, Scratch<Traits>& scratch) {
    for_each_vector(params, vectors, [&](int row, int64_t at) {
      if (scratch.fresh[row / kPanel]) return;
      const Floats before = load<Floats>(scratch.total_max + row);
      const Floats now = load<Floats>(scratch.row_max + row);
      // Exactly 1 where the reference stays, as in a group that a row does not see.
      const Floats alpha =
          before < now ? exp2<5>(before - now, ExpScale(params.scale_log2)) : splat(1.0f);
      store(scratch.total_max + row, now);
      add_one(alpha, scratch.row_sum + row, scratch.total_sum + row, scratch.lost_sum + row);
      store(scratch.row_sum + row, Floats{});
      for (int d = 0; d < params.head_dim_v; ++d) {
        const int64_t i = at + d * kPanel;
        add_one(alpha, scratch.o + i, scratch.total + i, scratch.lost + i);
      }
    });
    for (bool& fresh : scratch.fresh) fresh = true;
  }

  /// After the last group: o and row_sum become the totals.
  static void finish(const PrefillParams& params, int vectors, Scratch<Traits>& scratch) {
    for_each_vector(params, vectors, [&](int row, int64_t at) {
      store(scratch.row_sum + row, sum_of(scratch.total_sum + row, scratch.lost_sum + row));
      for (int d = 0; d < params.head_dim_v; ++d) {
        const int64_t i = at + d * kPanel;
        store(scratch.o + i, sum_of(scratch.total + i, scratch.lost + i));
      }
    });
  }

 private:
  /// visit(row, where its lanes begin in o) for every vector of rows.
  template <class Visit>
  EXACTILE_INLINE static void for_each_vector(const PrefillParams& params, int vectors,
                                              Visit visit) {
    for (int v = 0; v < vectors; ++v) {
      const int row = v * kLanes;
      visit(row, int64_t{row / kPanel} * params.head_dim_v * kPanel + row % kPanel);
    }
  }

  /// total = alpha * total + x; `lost` takes what that rounds away.
  EXACTILE_INLINE static void add_one(Floats alpha, const float* x, float* total, float* lost) {
    const Floats a = alpha * load<Floats>(total), b = load<Floats>(x);
    const Floats sum = a + b;
    const Floats b_in_sum = sum - a;
    store(lost, alpha * load<Floats>(lost) + ((a - (sum - b_in_sum)) + (b - b_in_sum)));
    store(total, sum);
  }

  /// An infinite total has lost nothing that counts (Inf - Inf).
  EXACTILE_INLINE static Floats sum_of(const float* total, const float* lost) {
    const Floats rest = load<Floats>(lost);
    return load<Floats>(total) + (rest == rest ? rest : Floats{});
  }
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
