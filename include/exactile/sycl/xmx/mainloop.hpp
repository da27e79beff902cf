// exactile/sycl/xmx/mainloop.hpp - the rows of one sub-group against their keys: QK^T, mask, online
// softmax, PV (arXiv:2205.14135 Alg. 1) on the matrix engines.
//
// Letters: R rows of a sub-group (16 tokens of one head, or 8), N keys of a block, D head_dim, Dv
// head_dim_v. Operands come straight from L1 through 2D block messages: no local memory, no
// barrier.
#pragma once

#include <exactile/sycl/tile.hpp>
#include <exactile/sycl/xmx/kv_blocks.hpp>
#include <exactile/sycl/xmx/totals.hpp>

namespace exactile::sycl::xmx {

/// `rows` rows of one head, from `token` on. traits.hpp says which tensors make legal ones.
template <class Traits, class Pointer>
EXACTILE_HOST_DEVICE Surface head_surface(const Tensor<Pointer>& tensor, int32_t token,
                                          int32_t head, int32_t rows, int head_dim) {
  using Element = typename Traits::Element;
  const auto* const data = static_cast<const Element*>(tensor.data);
  return {.base = data + token * tensor.token_stride + head * tensor.head_stride,
          .width_bytes = head_dim * 2,
          .rows = rows,
          .pitch_bytes = static_cast<int>(tensor.token_stride * 2)};
}

/// What variants of the scores compute with (exactile/scores.hpp): of a Fragment at a time.
struct Math : sycl::Math {
  /// Relative error 1e-6.
  EXACTILE_HOST_DEVICE static Fragment tanh(Fragment x) {
    constexpr float kTwoLog2E = 2.88539008177792682f;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      // Near 0, where 1 - 2 / (e^2x + 1) would cancel, a polynomial in x^2.
      const float z = x[r] * x[r];
      const float p = ::sycl::fma(::sycl::fma(z, -17.0f / 315, 2.0f / 15), z, -1.0f / 3);
      const float near = ::sycl::fma(x[r] * z, p, x[r]);
      const float e = ::sycl::native::exp2(x[r] * kTwoLog2E);
      const float far = ::sycl::fma(-2.0f, ::sycl::native::recip(1.0f + e), 1.0f);
      x[r] = ::sycl::fabs(x[r]) < 0.25f ? near : far;
    }
    return x;
  }
};

template <class Traits>
class Mainloop {
  using Element = typename Traits::Element;
  using Scores = typename Traits::Scores;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kRowBlocks = Traits::kSubGroupRows / 8;
  static constexpr int kKeyBlocks = Traits::kBlockN / 16;
  static constexpr int kColumnBlocks = Traits::kHeadDimV / 16;
  static constexpr int kPairs = kBlockN / 32;
  static constexpr int kDepth = Traits::kHeadDim / 16;
  static constexpr int kValueBlocks = Traits::kHeadDimV / 32;

  /// A reference moves when a score is above by more than this, a factor of 2^8.
  static constexpr float kSlack = 8.0f;
  /// From here on a reference is a score: log2 would be rounded to 2^-11 of a probability.
  static constexpr float kLarge = 8192.0f;
  static constexpr int32_t kFar = 1 << 30;
  static constexpr Constant<0> kZero{};

 public:
  /// The named registers of the kernel: declared once, used by one mainloop after the other.
  struct Registers {
    Accumulators<'o', kColumnBlocks, kRowBlocks> o;  // (R, Dv)
    Accumulators<'s', kKeyBlocks, kRowBlocks> s;     // (R, N): scores, then probabilities
    Accumulators<'l', 1, kRowBlocks> row_sum;        // (R, 16): each lane's own columns
    Cursor<typename Traits::Arch, 'q', 0, kQueryBlock<kRowBlocks>, 1, 2> q;
    KvCursors<Traits> kv;

    EXACTILE_HOST_DEVICE void declare() {
      o.declare();
      s.declare();
      row_sum.declare();
      q.declare();
      kv.declare();
    }
  };

  EXACTILE_HOST_DEVICE Mainloop(const PrefillParams& params, const Rows& rows, int sub_group)
      : scale_(params.scale_log2),
        score_params_(params.scores),
        k_len_(rows.k_len),
        q_(head_surface<Traits>(params.q, rows.first, rows.head, rows.count, Traits::kHeadDim)),
        kv_(params, rows, sub_group) {
    const Mask mask = params.mask;
    const int32_t last = rows.rows_to_end - rows.count + 1;
    const KeyRange any = mask.any_visible(rows.rows_to_end, last, rows.k_len);
    const BlockRange all =
        blocks_within(mask.all_visible(rows.rows_to_end, last, rows.k_len), kBlockN);
    begin_ = blocks_with(any, kBlockN).begin * kBlockN;
    end_ = any.empty() ? begin_ : any.end;
    unmasked_begin_ = all.begin * kBlockN;
    unmasked_end_ = all.end * kBlockN;
    const int64_t position = int64_t{rows.k_len} - rows.rows_to_end;
    low_ = mask.left < 0 ? -kFar : clamp(position - mask.left);
    high_ = mask.right < 0 ? kFar : clamp(position + mask.right + 1);
    if constexpr (Scores::kChanges) {
      position_ = rows.k_len - rows.rows_to_end;
      slope_ = Scores::slope(params.scores, rows.first, rows.head);
    }
  }

  /// Leaves o and row_sum in the registers and returns what their exponentials are relative to.
  EXACTILE_HOST_DEVICE References run(Registers& registers) const {
    unrolled<kRowBlocks>([&](auto i) {
      clear(registers.row_sum.at(kZero, i));
      unrolled<kColumnBlocks>([&](auto c) { clear(registers.o.at(c, i)); });
    });
    State state;
    if (begin_ >= end_) return state.references;
    QueryTiles queries;
    start(registers, queries);
    Totals<Traits> totals;
    for (int32_t n = begin_;;) {
      const int32_t end_of_span = min(end_, (n / totals.kSpan + 1) * totals.kSpan);
      while (n < end_of_span) {
        if (attend(n, queries, registers, state)) n += kBlockN;
      }
      totals.add_to(registers, state.references, scale_);
      if (n >= end_) return state.references;
      totals.take_from(registers, state.references);
    }
  }

 private:
  /// All queries, where they are kept.
  using QueryTiles = Queries<kRowBlocks>[kDepth];

  /// What goes from block to block.
  struct State {
    References references;
    bool large = false;    ///< the reference of some row is a score; the same in all lanes
    int32_t plain = kFar;  ///< from this block on nothing is to be masked or given a reference
  };

  EXACTILE_HOST_DEVICE void start(Registers& registers, QueryTiles& queries) const {
    registers.q.set(q_, {0, 0});
    kv_.start(registers.kv, begin_);
    if constexpr (Traits::kKeepsQueries) {
      unrolled<kDepth>([&](auto d) { queries[d] = load_queries<d * 16>(registers.q); });
    }
  }

  /// The block of keys from n on. False: it is to be visited again.
  EXACTILE_HOST_DEVICE bool attend(int32_t n, const QueryTiles& queries, Registers& registers,
                                   State& state) const {
    kv_.fetch_ahead(registers.kv);
    scores(queries, registers);
    const ValueTiles values = values_of<0>(registers);  // on their way during the softmax
    keep_order();
    if constexpr (Scores::kChanges) change(n, registers);
    if (n < state.plain || n >= unmasked_end_) {
      hide_unseen(n, registers);
      if (state.plain == kFar && set_references(registers, state)) state.plain = unmasked_begin_;
    }
    if (state.large) follow_large(registers, state.references);
    unrolled<kKeyBlocks>([&](auto j) {
      unrolled<kRowBlocks>(
          [&](auto i) { scale_subtract<i>(registers.s.at(j, i), scale_, state.references.log2); });
    });
    if (any_above(registers.s, kSlack) && !move_references(registers, state)) return false;
    add_values(values, registers);
    kv_.move_down(registers.kv, n);
    return true;
  }

  /// 32 keys, 16 columns: the kStep'th operands of q k^T.
  struct Keys {
    BTile tiles[2];
  };
  template <int kStep>
  EXACTILE_HOST_DEVICE static Keys keys_of(Registers& registers) {
    constexpr int kColumn = kStep / kPairs * 8, kRow = kStep % kPairs * 32;
    return {
        {load_keys<kColumn, kRow>(registers.kv.k), load_keys<kColumn, kRow + 16>(registers.kv.k)}};
  }

  /// The kStep'th operands of p v: 32 columns of kRunKeys keys.
  using ValueTiles = Values<Traits::kRunKeys>;
  static constexpr int kParts = 32 / Traits::kRunKeys;  // for 32 keys

  template <int kStep>
  EXACTILE_HOST_DEVICE static ValueTiles values_of(Registers& registers) {
    constexpr int kBlock = kStep / kParts, kColumn = kBlock % kValueBlocks * 32;
    constexpr int kRow = kBlock / kValueBlocks * 32 + kStep % kParts * Traits::kRunKeys;
    return load_values<kColumn, kRow>(registers.kv.v);
  }

  /// s = q k^T. The operands of a step are asked for one step ahead.
  EXACTILE_HOST_DEVICE static void scores(const QueryTiles& kept, Registers& registers) {
    constexpr int kSteps = kDepth * kPairs;
    QueryTiles queries;
    if constexpr (Traits::kKeepsQueries) {
      unrolled<kDepth>([&](auto d) { queries[d] = kept[d]; });
    } else {
      queries[0] = load_queries<0>(registers.q);
    }
    Keys keys[kSteps];
    keys[0] = keys_of<0>(registers);
    unrolled<kSteps>([&](auto step) {
      constexpr int d = step / kPairs;  // columns 16 d to 16 d + 15
      constexpr int pair = step % kPairs;
      if constexpr (step + 1 < kSteps) {
        if constexpr (!Traits::kKeepsQueries && pair == kPairs - 1) {
          queries[d + 1] = load_queries<(d + 1) * 16>(registers.q);
        }
        keys[step + 1] = keys_of<step + 1>(registers);
      }
      keep_order();
      unrolled<2>([&](auto j) {
        unrolled<kRowBlocks>([&](auto i) {
          multiply<Element, d == 0, i, 0>(registers.s.at(Constant<pair * 2 + j>{}, i), queries[d],
                                          keys[step].tiles[j]);
        });
      });
    });
  }

  EXACTILE_HOST_DEVICE void change(int32_t n, Registers& registers) const {
    const auto change = [this](Fragment s, float key_to_row) {
      Fragment distance;
#pragma unroll
      for (int r = 0; r < 8; ++r) distance[r] = ::sycl::fabs(key_to_row - static_cast<float>(r));
      return Scores::template change<Math>(score_params_, s, Fragment(slope_), distance);
    };
    unrolled<kKeyBlocks>([&](auto j) {
      const int32_t key = n + j * 16 + lane();
      unrolled<kRowBlocks>([&](auto i) {
        transform(registers.s.at(j, i), static_cast<float>(key - position_ - i * 8), change);
      });
    });
  }

  EXACTILE_HOST_DEVICE void hide_unseen(int32_t n, Registers& registers) const {
    unrolled<kKeyBlocks>([&](auto j) {
      const int32_t key = n + j * 16 + lane();
      const bool exists = key < k_len_;
      unrolled<kRowBlocks>([&](auto i) {
        hide(registers.s.at(j, i), exists ? key - high_ - i * 8 : 8, key - low_ - i * 8);
      });
    });
  }

  /// Of a lane: whether a row's value is in it.
  EXACTILE_HOST_DEVICE static bool has_row() {
    return Traits::kSubGroupRows == kLanes || lane() < Traits::kSubGroupRows;
  }

  /// Gives rows that see their first key a reference; their sums are zero. True: all have one.
  EXACTILE_HOST_DEVICE bool set_references(Registers& registers, State& state) const {
    const float top = reduce_rows<Reduction::kMaximum>(registers.s);
    const float log2 = top * scale_;
    const bool large = ::sycl::fabs(log2) >= kLarge;
    References& references = state.references;
    if (!references.is_set() && top > -kInfinity) {
      references = {.score = large ? top : 0.0f, .log2 = large ? 0.0f : log2};
    }
    state.large = any(has_row() && references.score != 0);
    return !any(has_row() && !references.is_set());
  }

  /// Subtracts from s the references that are scores, which follow the maxima.
  EXACTILE_HOST_DEVICE void follow_large(Registers& registers, References& references) const {
    const float top = reduce_rows<Reduction::kMaximum>(registers.s);
    const References before = references;
    if (references.score != 0) references.score = max(references.score, top);
    rescale(registers, before.factor_to(references, scale_));
    subtract(registers, references.score);
  }

  /// Raises the references of rows with a maximum above kSlack to this. s is relative to them.
  /// False: some become scores, and s is needed as it was.
  EXACTILE_HOST_DEVICE bool move_references(Registers& registers, State& state) const {
    const float top = reduce_rows<Reduction::kMaximum>(registers.s);
    References& references = state.references;
    const References before = references;
    const float moved = top > kSlack ? references.log2 + top : references.log2;
    if (any(has_row() && moved >= kLarge)) {
      // A little below the maximum, which follow_large() finds.
      if (moved >= kLarge) references = {.score = moved * (1 - 0x1p-20f) / scale_, .log2 = 0};
      rescale(registers, before.factor_to(references, scale_));
      state.large = true;
      return false;
    }
    references.log2 = moved;
    rescale(registers, before.factor_to(references, scale_));
    subtract(registers, moved - before.log2);
    return true;
  }

  /// s -= offsets[row].
  EXACTILE_HOST_DEVICE static void subtract(Registers& registers, float offsets) {
    unrolled<kRowBlocks>([&](auto i) {
      unrolled<kKeyBlocks>([&](auto j) { scale_subtract<i>(registers.s.at(j, i), 1.0f, offsets); });
    });
  }

  /// o and row_sum *= factors[row].
  EXACTILE_HOST_DEVICE static void rescale(Registers& registers, float factors) {
    unrolled<kRowBlocks>([&](auto i) {
      unrolled<kColumnBlocks>([&](auto c) { scale_rows<i>(registers.o.at(c, i), factors); });
      scale_rows<i>(registers.row_sum.at(kZero, i), factors);
    });
  }

  /// s = 2^s, row_sum += s, o += s v. The operands of a step are asked for one step ahead.
  EXACTILE_HOST_DEVICE static void add_values(const ValueTiles& first, Registers& registers) {
    constexpr int kSteps = kValueBlocks * kPairs * kParts;
    constexpr int kTiles = Traits::kRunKeys / 16;  // of a step's operands, below one another
    ValueTiles values[kSteps];
    values[0] = first;
    ATile p[kKeyBlocks][kRowBlocks];  // (R, N)
    unrolled<kSteps>([&](auto step) {
      constexpr int block = step / kParts, part = step % kParts;
      constexpr int pair = block / kValueBlocks;    // keys 32 pair to 32 pair + 31
      constexpr int column = block % kValueBlocks;  // columns 32 column to 32 column + 31
      if constexpr (column == 0 && part == 0) {
        unrolled<2>([&](auto h) {
          unrolled<kRowBlocks>([&](auto i) {
            auto&& s = registers.s.at(Constant<pair * 2 + h>{}, i);
            exp2(s);
            add(registers.row_sum.at(kZero, i), s);
            p[pair * 2 + h][i] = convert<Element>(s);
          });
        });
      }
      if constexpr (step + 1 < kSteps) values[step + 1] = values_of<step + 1>(registers);
      keep_order();
      unrolled<2>([&](auto c) {
        unrolled<kTiles>([&](auto h) {
          unrolled<kRowBlocks>([&](auto i) {
            multiply<Element, false, 0, c * kTiles + h>(
                registers.o.at(Constant<column * 2 + c>{}, i), p[pair * 2 + part * kTiles + h][i],
                values[step]);
          });
        });
      });
    });
  }

  EXACTILE_HOST_DEVICE static int32_t clamp(int64_t position) {
    return static_cast<int32_t>(min(max(position, int64_t{-kFar}), int64_t{kFar}));
  }

  const float scale_;
  const ScoreParams& score_params_;
  const int32_t k_len_;
  const Surface q_;
  const KvBlocks<Traits> kv_;
  int32_t begin_, end_;                    // keys that some row sees; begin_ at a block's
  int32_t unmasked_begin_, unmasked_end_;  // blocks that all rows see whole
  int32_t low_, high_;                     // row r sees the keys [low_ + r, high_ + r) that exist
  int32_t position_;                       // of row 0, as Mask says it; where scores change
  float slope_;                            // of all rows; where scores change
};

}  // namespace exactile::sycl::xmx
