// exactile/sycl/xmx/totals.hpp - the sums of a long sequence without a long chain of additions.
//
// The matrix engines add to o key after key. At the end of every kSpan keys of the sequence o and
// the row sums go into totals, which lie in the sub-group's private memory: the registers are full,
// and this is rare. Spans begin at fixed keys of the sequence: which tile a row is in changes no
// bit.
#pragma once

#include <exactile/sycl/xmx/atoms.hpp>

namespace exactile::sycl::xmx {

/// Per row, what its exponentials are relative to: they are 2^((s - score) scale - log2), s being
/// q k^T. log2 is kUnset for a row that has seen no key. Of a row whose scores are so large that
/// the rounding of log2 would show, score is a score of the row, and log2 0; of others score is 0.
struct References {
  static constexpr float kUnset = -3.4e38f;
  float score = 0, log2 = kUnset;

  EXACTILE_HOST_DEVICE bool is_set() const { return log2 != kUnset; }
  EXACTILE_HOST_DEVICE float log2_of_base(float scale) const { return score * scale + log2; }

  /// 2^(what an exponent loses when its row's reference goes from here to there): exactly 1 where
  /// it stays.
  EXACTILE_HOST_DEVICE float factor_to(const References& there, float scale) const {
    return is_set()
               ? ::sycl::native::exp2(::sycl::fma(score - there.score, scale, log2 - there.log2))
               : 1.0f;
  }
};

template <class Traits>
class Totals {
  static constexpr int kRowBlocks = Traits::kSubGroupRows / 8;
  static constexpr int kColumnBlocks = Traits::kHeadDimV / 16;
  static constexpr int kReference = (kColumnBlocks + 1) * kRowBlocks;  // a fragment's place

 public:
  static constexpr int32_t kSpan = 2048;
  static_assert(kSpan % Traits::kBlockN == 0);

  /// Adds the totals, if there are some, to what is in the registers.
  template <class Registers>
  EXACTILE_HOST_DEVICE void add_to(Registers& registers, const References& references,
                                   float scale) const {
    if (!any_) return;
    const int first = first_;
    const Fragment reference = memory_[first + kReference];
    const References before{.score = reference[0], .log2 = reference[1]};
    const float factors = before.factor_to(references, scale);
    for_each(registers, [&](auto row_block, auto&& sums, auto index) {
      const Fragment total = memory_[first + index];
      add_scaled<row_block>(sums, total, factors);
    });
  }

  /// The totals are now what is in the registers, which are cleared.
  template <class Registers>
  EXACTILE_HOST_DEVICE void take_from(Registers& registers, const References& references) {
    any_ = true;
    const int first = first_;
    memory_[first + kReference] = {references.score, references.log2};
    for_each(registers, [&](auto, auto&& sums, auto index) {
      memory_[first + index] = value_of(sums);
      clear(sums);
    });
  }

 private:
  template <class Registers, class Function>
  EXACTILE_HOST_DEVICE static void for_each(Registers& registers, Function&& f) {
    unrolled<kRowBlocks>([&](auto i) {
      constexpr Constant<0> kZero{};
      f(i, registers.row_sum.at(kZero, i), Constant<kColumnBlocks * kRowBlocks + i>{});
      unrolled<kColumnBlocks>(
          [&](auto c) { f(i, registers.o.at(c, i), Constant<c * kRowBlocks + i>{}); });
    });
  }

  bool any_ = false;
  // Volatile: the compiler would keep them in registers; and so is what indices begin at: it would
  // keep an address for each.
  volatile Fragment memory_[kReference + 1];
  volatile int first_ = 0;
};

}  // namespace exactile::sycl::xmx
