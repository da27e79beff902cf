// exactile/cpu/tile_io.hpp - a tile's queries in, its output out.
#pragma once

#include <exactile/cpu/scratch.hpp>
#include <exactile/tile_rows.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

/// What a tile's o holds. Rows whose scores are NaN do not count.
enum class Sums { kFinite, kNotFinite };

template <class Traits>
struct TileIo {
  using Element = typename Traits::Element;
  using Kernel = MicroKernel<Traits>;
  using Scalar = typename Kernel::Scalar;
  static constexpr int kPanel = Kernel::kPanel;
  static constexpr int kPerScalar = Kernel::Operand::kPerScalar;

  /// Writes Q transposed, (panel, D, P), and the key range of every row. Rows past the tile's last
  /// repeat it.
  static void load(const PrefillParams& params, const TileRows& tile, Scratch<Traits>& scratch) {
    const auto* const q = static_cast<const Element*>(params.q.data);
    const int padded_rows = (tile.rows() + kPanel - 1) / kPanel * kPanel;
    for (int row0 = 0; row0 < padded_rows; row0 += kLanes) {
      const Element* from[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int row = min(row0 + i, tile.rows() - 1);
        const int32_t rows_to_end = tile.rows_to_end(row);
        const KeyRange keys = params.mask.visible(rows_to_end, tile.record.k_len);
        scratch.key_begin[row0 + i] = keys.begin;
        scratch.key_end[row0 + i] = keys.end;
        if (params.scores.change()) {
          scratch.slope[row0 + i] =
              Traits::Scores::slope(params.scores, tile.token(row), tile.head(row));
          scratch.position[row0 + i] = tile.position(row);
        }
        from[i] = q + tile.offset(params.q, row);
      }
      if (row0 >= tile.rows()) continue;  // vectors without a row are not computed
      Scalar* const to = scratch.q + panel_offset(row0, params.head_dim / kPerScalar);
      transpose_rows(from, params.head_dim, to);
    }
  }

  /// Writes O = o / row_sum and the LSE. A row that saw no key has row_sum 0: O = 0, LSE = -inf.
  /// NaNs are canonical and -0 becomes 0, so a row's bits never depend on the tile.
  static Sums store(const PrefillParams& params, const TileRows& tile, Scratch<Traits>& scratch) {
    if (params.lse) store_lse(params, tile, scratch);
    if (params.scores.sinks) add_sinks(params, tile, scratch);
    return params.stream_out ? store_rows<true>(params, tile, scratch)
                             : store_rows<false>(params, tile, scratch);
  }

 private:
  template <bool kStream>
  static Sums store_rows(const PrefillParams& params, const TileRows& tile,
                         const Scratch<Traits>& scratch) {
    constexpr int kChunk = Scratch<Traits>::kHeadDimVStep;
    auto* const out = static_cast<Element*>(params.out.data);
    Ints not_finite{};
    for (int row0 = 0; row0 < tile.rows(); row0 += kLanes) {
      const Floats sum = cpu::load<Floats>(scratch.row_sum + row0);
      const Ints ordinary = (sum == sum) & (sum != Floats{});
      const Floats otherwise = sum == Floats{} ? Floats{} : splat(kNan);
      const Floats inverse = 1.0f / sum;
      const float* const o = scratch.o + panel_offset(row0, params.head_dim_v);
      const int rows = min(kLanes, tile.rows() - row0);
      Element* to[kLanes];
      for (int i = 0; i < rows; ++i) to[i] = out + tile.offset(params.out, row0 + i);
      Floats zero[4] = {};  // NaN where an element is Inf or NaN; on four chains
      // A cache line of every row at a time: a streaming store has to fill it.
      for (int d0 = 0; d0 < params.head_dim_v; d0 += kChunk) {
        alignas(64) Element line[kLanes][kChunk];
        for (int d = 0; d < kChunk; d += kLanes) {
          Floats x[kLanes];
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) {
            x[i] = cpu::load<Floats>(o + (d0 + d + i) * kPanel) * inverse + 0.0f;  // -0 is 0
            x[i] = ordinary ? x[i] : otherwise;
            zero[i % 4] += x[i] * 0.0f;
          }
          transpose(x);
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) from_floats(line[i] + d, x[i]);
        }
        for (int i = 0; i < rows; ++i) copy_line<kStream>(to[i] + d0, line[i]);
      }
      const Floats all = (zero[0] + zero[1]) + (zero[2] + zero[3]);
      not_finite |= (all != all) & ordinary;
    }
    return any(not_finite) ? Sums::kNotFinite : Sums::kFinite;
  }

  /// Start of row0's lanes in a (panel, steps, P) array.
  static int64_t panel_offset(int row0, int steps) {
    return int64_t{row0 / kPanel} * steps * kPanel + row0 % kPanel;
  }

  static void transpose_rows(const Element* const (&from)[kLanes], int head_dim, Scalar* to) {
    for (int d = 0; d < head_dim; d += Scratch<Traits>::kHeadDimStep) {
      typename Kernel::Vector x[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if constexpr (kPerScalar == 2) {
          x[i] = cpu::load<Words>(from[i] + d);
        } else {
          x[i] = to_floats(from[i] + d);
        }
      }
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) cpu::store(to + (d / kPerScalar + i) * kPanel, x[i]);
    }
  }

  using RowSum = exactile::RowSum<typename Traits::Scores, Math>;

  static RowSum row_sum(const PrefillParams& params, const TileRows& tile,
                        const Scratch<Traits>& scratch, int row) {
    return {params.scores, scratch.row_sum[row], scratch.row_max[row], params.scale_log2,
            [&] { return tile.head(row); }};
  }

  static void store_lse(const PrefillParams& params, const TileRows& tile,
                        const Scratch<Traits>& scratch) {
    for (int row = 0; row < tile.rows(); ++row) {
      const RowSum sum = row_sum(params, tile, scratch, row);
      params.lse[tile.head(row) * params.lse_head_stride + tile.token(row)] =
          sum.total() == 0             ? -kInfinity
          : sum.total() != sum.total() ? kNan
                                       : sum.lse(scratch.row_max[row], params.scale_log2);
    }
  }

  /// A row without a key stays one: its o is not written.
  static void add_sinks(const PrefillParams& params, const TileRows& tile,
                        Scratch<Traits>& scratch) {
    for (int row = 0; row < tile.rows(); ++row) {
      if (scratch.row_sum[row] == 0) continue;
      scratch.row_sum[row] = row_sum(params, tile, scratch, row).total();
    }
  }
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
