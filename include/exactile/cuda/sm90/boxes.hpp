// exactile/cuda/sm90/boxes.hpp - the TMA boxes of K and V: what a layout of theirs is to the
// producer.
#pragma once

#include <exactile/cuda/ptx.hpp>
#include <exactile/cuda/sm90/traits.hpp>

namespace exactile::cuda::sm90 {

/// Loads boxes of one sequence and kv head. Tensor maps are the launch's (src/cuda/launch.cpp).
template <class Traits, class Layout = typename Traits::KvLayout>
class KvBoxes;

/// Maps over (head_dim, heads, tokens).
template <class Traits>
class KvBoxes<Traits, ContiguousKv> {
 public:
  EXACTILE_DEVICE KvBoxes(const PrefillParams&, const TileRecord& rows, int32_t head)
      : k_begin_(rows.k_begin), head_(head) {}

  /// kChunk columns from `column` on, of the keys from `key` on.
  EXACTILE_DEVICE void load(ptx::uint32_t to, const TensorMap& map, ptx::uint32_t barrier,
                            int32_t column, int32_t key) const {
    ptx::tma_load(to, &map, barrier, column, head_, k_begin_ + key);
  }

 private:
  const int32_t k_begin_, head_;
};

}  // namespace exactile::cuda::sm90
