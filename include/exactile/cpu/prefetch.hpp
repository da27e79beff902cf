// exactile/cpu/prefetch.hpp - brings the next tile's rows into the second-level cache, a few at a
// time.
//
// Short sequences are bound by memory: their rows are touched once (benchmarks/cpu.md).
#pragma once

#include <exactile/cpu/tile_io.hpp>

namespace exactile::cpu {
inline namespace EXACTILE_CPU_ISA {

template <class Traits>
class Prefetch {
  using Element = typename Traits::Element;
  using KvRows = typename Traits::KvLayout::template Rows<Element>;

 public:
  EXACTILE_INLINE explicit Prefetch(const PrefillParams& params) : params_(params) {}

  EXACTILE_INLINE void start(const WorkTile& tile) {
    record_ = tile.rows;
    const TileRows rows(params_, tile);
    tokens_ = rows.tokens;
    heads_ = rows.heads;
    first_head_ = rows.first_head;
    kv_head_ = rows.kv_head;
  }

  /// The next few tokens of Q; then of K and V, a block's worth.
  EXACTILE_INLINE void step() {
    if (q_ < tokens_) {
      const int end = min(q_ + kTokens, tokens_);
      for (; q_ < end; ++q_) {
        for (int h = 0; h < heads_; ++h) {
          const int64_t token = record_.q_begin + q_;
          prefetch_row(static_cast<const Element*>(params_.q.data) +
                           token * params_.q.token_stride +
                           (first_head_ + h) * params_.q.head_stride,
                       params_.head_dim);
        }
      }
    } else if (k_ < min(record_.k_len, kBlockN)) {
      const KvRows k(params_.k, params_.pages, record_.k_begin, kv_head_);
      const KvRows v(params_.v, params_.pages, record_.k_begin, kv_head_);
      const int end = min(k_ + 2 * kTokens, min(record_.k_len, kBlockN));
      for (; k_ < end; ++k_) {
        prefetch_row(k[k_], params_.head_dim);
        prefetch_row(v[k_], params_.head_dim_v);
      }
    }
  }

 private:
  static constexpr int kTokens = 8;

  const PrefillParams& params_;
  TileRecord record_{};
  int tokens_ = 0, heads_ = 0, first_head_ = 0, kv_head_ = 0;
  int q_ = 0, k_ = 0;
};

}  // namespace EXACTILE_CPU_ISA
}  // namespace exactile::cpu
