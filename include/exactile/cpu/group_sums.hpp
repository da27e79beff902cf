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
  EXACTILE_INLINE GroupSums(const PrefillParams& params, int rows, Scratch<Traits>& scratch)
      : params_(params), vectors_(ceil_div(rows, kLanes)), scratch_(scratch) {}

  /// total += o and total_sum += row_sum, for the panels that have seen a key of the group.
  void end_group() {
    if (!several_) clear();
    several_ = true;
    for_each_vector([this](int row, int64_t at) {
      if (scratch_.fresh[row / kPanel]) return;
      const Floats before = load<Floats>(scratch_.total_max + row);
      const Floats now = load<Floats>(scratch_.row_max + row);
      // Exactly 1 where the reference stays, as in a group that a row does not see.
      const Floats alpha =
          before < now ? exp2<5>(before - now, ExpScale(params_.scale_log2)) : splat(1.0f);
      store(scratch_.total_max + row, now);
      add(alpha, scratch_.row_sum + row, scratch_.total_sum + row, scratch_.lost_sum + row);
      store(scratch_.row_sum + row, Floats{});
      for (int d = 0; d < params_.head_dim_v; ++d) {
        const int64_t i = at + d * kPanel;
        add(alpha, scratch_.o + i, scratch_.total + i, scratch_.lost + i);
      }
    });
    for (bool& fresh : scratch_.fresh) fresh = true;
  }

  /// After the last key: o and row_sum become the totals, where they are not already.
  void finish() {
    if (!several_) return;
    end_group();
    for_each_vector([this](int row, int64_t at) {
      store(scratch_.row_sum + row, sum_of(scratch_.total_sum + row, scratch_.lost_sum + row));
      for (int d = 0; d < params_.head_dim_v; ++d) {
        const int64_t i = at + d * kPanel;
        store(scratch_.o + i, sum_of(scratch_.total + i, scratch_.lost + i));
      }
    });
  }

 private:
  void clear() {
    for_each_vector([this](int row, int64_t at) {
      store(scratch_.total_max + row, splat(-__builtin_inff()));
      store(scratch_.total_sum + row, Floats{});
      store(scratch_.lost_sum + row, Floats{});
      for (int d = 0; d < params_.head_dim_v; ++d) {
        store(scratch_.total + at + d * kPanel, Floats{});
        store(scratch_.lost + at + d * kPanel, Floats{});
      }
    });
  }

  /// visit(row, where its lanes begin in o) for every vector of rows.
  template <class Visit>
  EXACTILE_INLINE void for_each_vector(Visit visit) const {
    for (int v = 0; v < vectors_; ++v) {
      const int row = v * kLanes;
      visit(row, int64_t{row / kPanel} * params_.head_dim_v * kPanel + row % kPanel);
    }
  }

  /// total = alpha * total + x; `lost` takes what that rounds away.
  EXACTILE_INLINE static void add(Floats alpha, const float* x, float* total, float* lost) {
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

  const PrefillParams& params_;
  const int vectors_;  ///< of rows that the tile has
  Scratch<Traits>& scratch_;
  bool several_ = false;  ///< a group has ended before the last
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
