// exactile/cpu/group_sums.hpp - the sums of a long sequence without a long chain of additions.
//
// o and row_sum run over a group of key blocks at a time. At a group's end they are added to
// totals by compensated summation (Knuth's TwoSum), so the error does not grow with the number of
// groups. Groups begin at fixed keys of the sequence: which tile a row is in changes no bit.
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

  /// At the end of a group that is not the last: its sums become, or are added to, the totals.
  void end_group() {
    if (!several_) {
      begin();
    } else {
      for_each_vector([this](int row, int64_t at) {
        if (scratch_.is_empty[row / kPanel]) return;
        const Floats alpha = rescale(row);
        store(scratch_.total_max + row, load<Floats>(scratch_.row_max + row));
        add(alpha, scratch_.row_sum + row, scratch_.total_sum + row, scratch_.lost_sum + row);
        store(scratch_.row_sum + row, Floats{});
        for (int d = 0; d < params_.head_dim_v; ++d) {
          const int64_t i = at + d * kPanel;
          add(alpha, scratch_.o + i, scratch_.total + i, scratch_.lost + i);
        }
      });
      nothing_lost_ = false;
    }
    for (bool& is_empty : scratch_.is_empty) is_empty = true;
  }

  /// After the last key: o and row_sum are those of all groups.
  void finish() {
    if (!several_) return;
    for_each_vector([this](int row, int64_t at) {
      const bool is_empty = scratch_.is_empty[row / kPanel];
      const Floats alpha = rescale(row);
      float* const row_sum = scratch_.row_sum + row;
      finish(alpha, false, scratch_.total_sum + row, scratch_.lost_sum + row, row_sum);
      for (int d = 0; d < params_.head_dim_v; ++d) {
        const int64_t i = at + d * kPanel;
        finish(alpha, is_empty, scratch_.total + i, scratch_.lost + i, scratch_.o + i);
      }
    });
  }

 private:
  /// The first group's o becomes the total as it lies.
  void begin() {
    several_ = nothing_lost_ = true;
    float* const o = scratch_.o;
    scratch_.o = scratch_.total;
    scratch_.total = o;
    for_each_vector([this](int row, int64_t at) {
      store(scratch_.total_max + row, load<Floats>(scratch_.row_max + row));
      store(scratch_.total_sum + row, load<Floats>(scratch_.row_sum + row));
      store(scratch_.row_sum + row, Floats{});
      if (!scratch_.is_empty[row / kPanel]) return;
      for (int d = 0; d < params_.head_dim_v; ++d)
        store(scratch_.total + at + d * kPanel, Floats{});
    });
  }

  /// From the totals' reference to the row's. Exactly 1 where it stays, as in a group that a row
  /// does not see.
  EXACTILE_INLINE Floats rescale(int row) const {
    const Floats before = load<Floats>(scratch_.total_max + row);
    const Floats now = load<Floats>(scratch_.row_max + row);
    return before < now ? exp2<5>(before - now, ExpScale(params_.scale_log2)) : splat(1.0f);
  }

  /// visit(row, where its lanes begin in o) for every vector of rows.
  template <class Visit>
  EXACTILE_INLINE void for_each_vector(Visit visit) const {
    for (int v = 0; v < vectors_; ++v) {
      const int row = v * kLanes;
      visit(row, int64_t{row / kPanel} * params_.head_dim_v * kPanel + row % kPanel);
    }
  }

  struct Sum {
    Floats total, lost;
  };
  /// alpha * total + x, and what that rounds away.
  EXACTILE_INLINE Sum sum(Floats alpha, const float* total, const float* lost, Floats x) const {
    const Floats a = alpha * load<Floats>(total);
    const Floats sum = a + x;
    const Floats x_in_sum = sum - a;
    const Floats rounded_away = (a - (sum - x_in_sum)) + (x - x_in_sum);
    return {sum, nothing_lost_ ? rounded_away : fma(alpha, load<Floats>(lost), rounded_away)};
  }
  EXACTILE_INLINE void add(Floats alpha, const float* x, float* total, float* lost) const {
    const Sum s = sum(alpha, total, lost, load<Floats>(x));
    store(total, s.total);
    store(lost, s.lost);
  }
  /// An infinite total has lost nothing that counts (Inf - Inf).
  EXACTILE_INLINE void finish(Floats alpha, bool is_empty, const float* total, const float* lost,
                              float* x) const {
    const Sum s = sum(alpha, total, lost, is_empty ? Floats{} : load<Floats>(x));
    store(x, s.total + (s.lost == s.lost ? s.lost : Floats{}));
  }

  const PrefillParams& params_;
  const int vectors_;  ///< of rows that the tile has
  Scratch<Traits>& scratch_;
  bool several_ = false;  ///< groups before this one
  bool nothing_lost_ = true;
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
