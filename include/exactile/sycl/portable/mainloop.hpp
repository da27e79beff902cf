// exactile/sycl/portable/mainloop.hpp - one query tile against its keys: QK^T, mask, online
// softmax, PV (arXiv:2205.14135 Alg. 1) in float, on any device with 16-wide sub-groups.
//
// Letters: M rows of the tile, N keys of a block, D head_dim, Dv head_dim_v, L = 16 lanes of a
// sub-group. Every sub-group owns R = 8 rows whole; a lane has every 16th key, or column.
//   q  (M, D)       local, all rows of the tile
//   k  (D, N)       local, a block of keys, transposed: adjacent lanes read adjacent addresses
//   v               read where it lies
//   s  (R, N / L)   registers: scores
//   p  (M, N)       local, float: probabilities; a sub-group reads its own rows only
//   o  (R, Dv / L)  registers, not yet divided by the row sum
// Key blocks start at multiples of kBlockN from the sequence's first key whatever the tile, so a
// row's result does not depend on the tile that it is in. A key that a row does not see changes no
// bit of it, whatever K and V hold there.
//
// Sums over keys are made in three steps, so that their error does not grow with the length: over a
// block, over kSpan keys, over all (docs/sycl.md has the errors).
#pragma once

#include <exactile/sycl/element.hpp>
#include <exactile/sycl/portable/traits.hpp>
#include <exactile/sycl/tile.hpp>

namespace exactile::sycl::portable {

/// Work-group local memory of one tile.
template <class Traits>
struct LocalTiles {
  typename Traits::Element q[Traits::kBlockM][Traits::kHeadDim];
  typename Traits::Element k[Traits::kHeadDim][Traits::kBlockN];
  float p[Traits::kBlockM][Traits::kBlockN];
};

template <class Traits>
struct Accumulators {
  float o[Traits::kSubGroupRows][Traits::kHeadDimV / Traits::kSubGroup];
  float row_max[Traits::kSubGroupRows];  ///< of q k^T, not scaled; -inf: no key seen
  float row_sum[Traits::kSubGroupRows];  ///< this lane's share
};

/// Where a work-item stands.
struct Place {
  ::sycl::group<1> group;
  ::sycl::sub_group sub_group;
  int item;  ///< in the work-group
  int lane;
  int row0;  ///< first row of the sub-group in the tile
};

template <class Traits>
class Mainloop {
  using Element = typename Traits::Element;
  using KvRows = typename Traits::KvLayout::template Rows<Element>;
  static constexpr int kRows = Traits::kSubGroupRows;
  static constexpr int kLanes = Traits::kSubGroup;
  static constexpr int kKeys = Traits::kBlockN / kLanes;       // of a lane
  static constexpr int kColumns = Traits::kHeadDimV / kLanes;  // of a lane
  static constexpr int32_t kSpan = 64 * Traits::kBlockN;       // keys that are summed up by blocks

 public:
  EXACTILE_HOST_DEVICE Mainloop(const PrefillParams& params, const TileRows& tile,
                                const Place& place, LocalTiles<Traits>& local)
      : params_(params), tile_(tile), place_(place), local_(local) {}

  EXACTILE_HOST_DEVICE void run(Accumulators<Traits>& total) {
    Accumulators<Traits> acc;
    clear(acc);
    clear(total);
    load_queries();
    const int32_t first = tile_.rows_to_end(0), last = first - tile_.tokens + 1;
    const KeyRange any = params_.mask.any_visible(first, last, tile_.record.k_len);
    const KeyRange all = params_.mask.all_visible(first, last, tile_.record.k_len);
    for (int32_t n0 = any.begin / Traits::kBlockN * Traits::kBlockN; n0 < any.end;
         n0 += Traits::kBlockN) {
      ::sycl::group_barrier(place_.group);  // the last block has been read
      load_keys(n0);
      ::sycl::group_barrier(place_.group);
      if (place_.row0 >= tile_.rows()) continue;  // no row of this sub-group exists
      float s[kRows][kKeys];
      scores(s);
      if constexpr (Traits::Scores::kChanges) change(s, n0);
      const bool sees_all = n0 >= all.begin && n0 + Traits::kBlockN <= all.end;
      if (!sees_all) mask(s, n0);
      softmax(acc, s);
      ::sycl::group_barrier(place_.sub_group);  // p has been written
      add_values(acc, n0, sees_all);
      ::sycl::group_barrier(place_.sub_group);  // before p is written again
      if ((n0 + Traits::kBlockN) % kSpan == 0) merge(total, acc);
    }
    merge(total, acc);
  }

 private:
  static constexpr int kChunk = 2;  // columns at a time: their sums stay in registers anywhere

  /// The keys of a block whose values are added up. Those that a row does not see weigh 0.
  enum class Keys : unsigned char { kAll, kSeen };

  EXACTILE_HOST_DEVICE static void clear(Accumulators<Traits>& acc) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      acc.row_max[r] = -kInfinity;
      acc.row_sum[r] = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) acc.o[r][c] = 0;
    }
  }

  /// Rows past the last one are 0: computed like others, and not stored.
  EXACTILE_HOST_DEVICE void load_queries() {
    const auto* const q = static_cast<const Element*>(params_.q.data);
    for (int r = 0; r < kRows; ++r) {
      const int row = place_.row0 + r;
      const bool exists = row < tile_.rows();
      const Element* const from = q + (exists ? tile_.offset(params_.q, row) : 0);
#pragma unroll
      for (int d = place_.lane; d < Traits::kHeadDim; d += kLanes) {
        local_.q[row][d] = exists ? from[d] : Element{};
      }
    }
  }

  /// Keys past the sequence's last one are another sequence's, or none: 0 in their place.
  EXACTILE_HOST_DEVICE void load_keys(int32_t n0) {
    const KvRows k(params_.k, params_.pages, tile_.record.k_begin, tile_.kv_head);
    constexpr int kSubGroups = Traits::kThreads / kLanes;
    for (int n = place_.row0 / kRows; n < Traits::kBlockN; n += kSubGroups) {
      const bool exists = n0 + n < tile_.record.k_len;
      const Element* const from = k[exists ? n0 + n : 0];
#pragma unroll
      for (int d = place_.lane; d < Traits::kHeadDim; d += kLanes) {
        local_.k[d][n] = exists ? from[d] : Element{};
      }
    }
  }

  EXACTILE_HOST_DEVICE void scores(float (&s)[kRows][kKeys]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int j = 0; j < kKeys; ++j) s[r][j] = 0;
    }
    for (int d = 0; d < Traits::kHeadDim; ++d) {
      float k[kKeys];
#pragma unroll
      for (int j = 0; j < kKeys; ++j) k[j] = to_float(local_.k[d][j * kLanes + place_.lane]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float q = to_float(local_.q[place_.row0 + r][d]);
#pragma unroll
        for (int j = 0; j < kKeys; ++j) s[r][j] += q * k[j];
      }
    }
  }

  EXACTILE_HOST_DEVICE void change(float (&s)[kRows][kKeys], int32_t n0) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = min(place_.row0 + r, tile_.rows() - 1);
      const float slope = Traits::Scores::slope(params_.scores, tile_.token(row), tile_.head(row));
      const int32_t position = tile_.position(row);
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const int32_t key = n0 + j * kLanes + place_.lane;
        s[r][j] = Traits::Scores::template change<Math>(
            params_.scores, s[r][j], slope, ::sycl::fabs(static_cast<float>(key - position)));
      }
    }
  }

  EXACTILE_HOST_DEVICE KeyRange visible(int r) const {
    return params_.mask.visible(tile_.rows_to_end(place_.row0 + r), tile_.record.k_len);
  }

  EXACTILE_HOST_DEVICE void mask(float (&s)[kRows][kKeys], int32_t n0) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const KeyRange keys = visible(r);
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const int32_t key = n0 + j * kLanes + place_.lane;
        if (key < keys.begin || key >= keys.end) s[r][j] = -kInfinity;
      }
    }
  }

  /// 2^(scale (s - base)). The difference comes first: of two large products, one of them rounded
  /// and the other within a fused multiply-add, it would be anything.
  EXACTILE_HOST_DEVICE float exponential(float s, float base) const {
    return ::sycl::exp2((s - base) * params_.scale_log2);
  }

  /// While a row has seen no key its maximum is -inf, and -inf - -inf would be NaN.
  EXACTILE_HOST_DEVICE static float base_of(float row_max) {
    return row_max == -kInfinity ? 0.0f : row_max;
  }

  EXACTILE_HOST_DEVICE void softmax(Accumulators<Traits>& acc, const float (&s)[kRows][kKeys]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float row_max = s[r][0];
#pragma unroll
      for (int j = 1; j < kKeys; ++j) row_max = ::sycl::fmax(row_max, s[r][j]);
      row_max = ::sycl::reduce_over_group(place_.sub_group, row_max, ::sycl::maximum<float>());
      row_max = ::sycl::fmax(acc.row_max[r], row_max);
      const float base = base_of(row_max);
      const float rescale = exponential(acc.row_max[r], base);
      acc.row_max[r] = row_max;
      acc.row_sum[r] *= rescale;
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const float p = exponential(s[r][j], base);
        acc.row_sum[r] += p;
        local_.p[place_.row0 + r][j * kLanes + place_.lane] = p;
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) acc.o[r][c] *= rescale;
    }
  }

  /// 0 * NaN and 0 * Inf are NaN: where a sum is not finite, and some row does not see all keys, it
  /// is made again of those that the row sees. The bits of other sums do not depend on that.
  EXACTILE_HOST_DEVICE void add_values(Accumulators<Traits>& acc, int32_t n0, bool sees_all) const {
#pragma unroll
    for (int c0 = 0; c0 < kColumns; c0 += kChunk) {
      float sums[kRows][kChunk];
      sum_up<Keys::kAll>(sums, n0, c0);
      if (!sees_all && ::sycl::any_of_group(place_.sub_group, !all_finite(sums))) {
        sum_up<Keys::kSeen>(sums, n0, c0);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int c = 0; c < kChunk; ++c) acc.o[r][c0 + c] += sums[r][c];
      }
    }
  }

  /// sums = p v over the keys of a block, which end with the sequence's.
  template <Keys kKeysOf>
  EXACTILE_HOST_DEVICE void sum_up(float (&sums)[kRows][kChunk], int32_t n0, int c0) const {
    const KvRows v(params_.v, params_.pages, tile_.record.k_begin, tile_.kv_head);
    const int32_t keys = min(Traits::kBlockN, tile_.record.k_len - n0);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kChunk; ++c) sums[r][c] = 0;
    }
    for (int32_t n = 0; n < keys; ++n) {
      const Element* const from = v[n0 + n] + place_.lane + c0 * kLanes;
      float values[kChunk];
#pragma unroll
      for (int c = 0; c < kChunk; ++c) values[c] = to_float(from[c * kLanes]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kKeysOf == Keys::kSeen) {
          const KeyRange seen = visible(r);
          if (n0 + n < seen.begin || n0 + n >= seen.end) continue;
        }
        const float p = local_.p[place_.row0 + r][n];
#pragma unroll
        for (int c = 0; c < kChunk; ++c) {
          sums[r][c] = ::sycl::fma(p, values[c], sums[r][c]);  // fused in both instances
        }
      }
    }
  }

  EXACTILE_HOST_DEVICE static bool all_finite(const float (&sums)[kRows][kChunk]) {
    float zero = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int c = 0; c < kChunk; ++c) zero += 0 * sums[r][c];
    }
    return zero == 0;
  }

  /// Adds what acc has summed up to total, and clears it; its maxima stay.
  EXACTILE_HOST_DEVICE void merge(Accumulators<Traits>& total, Accumulators<Traits>& acc) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float rescale = exponential(total.row_max[r], base_of(acc.row_max[r]));
      total.row_max[r] = acc.row_max[r];
      total.row_sum[r] = total.row_sum[r] * rescale + acc.row_sum[r];
      acc.row_sum[r] = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        total.o[r][c] = total.o[r][c] * rescale + acc.o[r][c];
        acc.o[r][c] = 0;
      }
    }
  }

  const PrefillParams& params_;
  const TileRows& tile_;
  const Place& place_;
  LocalTiles<Traits>& local_;
};

}  // namespace exactile::sycl::portable
