// exactile/cuda/sm90/epilogue.hpp - O = o / row sum and the LSE, out to memory.
#pragma once

#include <exactile/cuda/sm90/softmax.hpp>
#include <exactile/cuda/sm90/tile.hpp>

namespace exactile::cuda::sm90 {

template <class Traits>
class Epilogue {
  using Element = typename Traits::Element;
  using Params = typename Traits::Params;
  using Slot = typename SharedStorage<Traits>::Slot;
  static constexpr int kQuadUnits = Traits::kHeadDimV / 32;  // that a quad has of a row, in fours

 public:
  /// Writes a thread's quarter of its two rows, `row` and `row + 8`; the lanes of a quad call it
  /// together. A row that saw no key has sum 0: O = 0, LSE = -inf. Rows past the end of the
  /// sequence are another's and are not written.
  EXACTILE_DEVICE static void store(const Params& params, const Slot& tile, int32_t row,
                                    const float (&o)[Traits::kHeadDimV / 2],
                                    const OnlineSoftmax& softmax) {
    const WorkTile& work = tile.work;
    if constexpr (Traits::Keys::kSplits) {
      if (tile.keys.is_part()) return store_part(params, tile, row, o, softmax);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowSum<typename Traits::Scores, ptx::Math> sum(
          params.scores, softmax.row_sum(r), softmax.reference(r), params.scale_log2,
          [&] { return TileRow(params, work, row + 8 * r).head; });
      const float inverse = sum.total() == 0 ? 0.0f : ptx::reciprocal(sum.total());
      const TileRow at(params, work, row + 8 * r);
      const bool exists = row + 8 * r < num_rows<Traits>(params, work.rows);
      store_row(params, at, exists, r, o, inverse);
      if (exists && params.lse && threadIdx.x % 4 == 0) {
        params.lse[at.head * params.lse_head_stride + at.token] =
            sum.lse(softmax.reference(r), params.scale_log2);
      }
    }
  }

 private:
  /// As it is, to where the parts of a tile are merged.
  EXACTILE_DEVICE static void store_part(const Params& params, const Slot& tile, int32_t row,
                                         const float (&o)[Traits::kHeadDimV / 2],
                                         const OnlineSoftmax& softmax) {
    const PartialResults& partial = params.split.partial;
    const int64_t first = tile.keys.row_of(tile.work.rows.q_begin, params.tile_heads);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = softmax.row_sum(r);
      if (row + 8 * r >= num_rows<Traits>(params, tile.work.rows)) continue;
      const int64_t at = first + row + 8 * r;
      float* const to = partial.out + at * Traits::kHeadDimV + threadIdx.x % 4 * 2;
#pragma unroll
      for (int i = 0; i < Traits::kHeadDimV / 8; ++i) {
        *reinterpret_cast<float2*>(to + 8 * i) = {o[4 * i + 2 * r], o[4 * i + 2 * r + 1]};
      }
      if (threadIdx.x % 4 == 0) partial.rows[at] = {softmax.reference(r), sum};
    }
  }

  EXACTILE_DEVICE static void store_row(const PrefillParams& params, const TileRow& at, bool exists,
                                        int r, const float (&o)[Traits::kHeadDimV / 2],
                                        float inverse) {
    Element* const to = static_cast<Element*>(params.out.data) +
                        at.token * params.out.token_stride + at.head * params.out.head_stride +
                        threadIdx.x % 4 * 8;
    ptx::uint32_t words[kQuadUnits][4];
#pragma unroll
    for (int i = 0; i < 4 * kQuadUnits; ++i) {
      const float* const pair = o + 4 * i + 2 * r;
      words[i / 4][i % 4] = ptx::pack<Element>(pair[0] * inverse, pair[1] * inverse);
    }
    transpose_quads(words);
    if (!exists) return;
#pragma unroll
    for (int i = 0; i < kQuadUnits; ++i) ptx::store_global(to + 32 * i, words[i]);
  }

  /// Lane q of a quad has word q of each of four 16-byte units; it gets the four words of unit q.
  /// Step by step for all of them: one alone would wait for its shuffles.
  EXACTILE_DEVICE static void transpose_quads(ptx::uint32_t (&words)[kQuadUnits][4]) {
#pragma unroll
    for (int i = 0; i < kQuadUnits; ++i) {
      exchange(words[i][0], words[i][1], 1);
      exchange(words[i][2], words[i][3], 1);
    }
#pragma unroll
    for (int i = 0; i < kQuadUnits; ++i) {
      exchange(words[i][0], words[i][2], 2);
      exchange(words[i][1], words[i][3], 2);
    }
  }

  /// 2 x 2 transpose between the lanes that differ in bit `lanes`.
  EXACTILE_DEVICE static void exchange(ptx::uint32_t& a, ptx::uint32_t& b, int lanes) {
    const bool upper = threadIdx.x & lanes;
    const ptx::uint32_t other = __shfl_xor_sync(~0u, upper ? a : b, lanes);
    (upper ? a : b) = other;
  }
};

}  // namespace exactile::cuda::sm90
