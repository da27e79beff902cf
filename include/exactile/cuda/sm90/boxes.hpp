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
  /// Whether a block is one box.
  static constexpr bool kOneBox = Traits::kBoxN == Traits::kBlockN;

  EXACTILE_DEVICE KvBoxes(const PrefillParams&, const TileRecord& rows, int32_t head)
      : k_begin_(rows.k_begin), head_(head) {}

  /// Keys in a box.
  EXACTILE_DEVICE static constexpr int32_t box_n() { return Traits::kBoxN; }

  /// kChunk columns from `column` on, of the keys from `key` on.
  EXACTILE_DEVICE void load(ptx::uint32_t to, const TensorMap& map, ptx::uint32_t barrier,
                            int32_t column, int32_t key) const {
    ptx::tma_load(to, &map, barrier, column, head_, k_begin_ + key);
  }

 private:
  const int32_t k_begin_, head_;
};

/// Maps over (head_dim, heads, keys of a page, pages). A box lies in one page.
template <class Traits>
class KvBoxes<Traits, PagedKv> {
  static_assert(Traits::kMask != MaskKind::kPacked);

 public:
  static constexpr bool kOneBox = false;

  EXACTILE_DEVICE KvBoxes(const PrefillParams& params, const TileRecord& rows, int32_t head)
      : params_(params),
        pages_(params.pages.pages + rows.k_begin * params.pages.row_stride),
        head_(head) {}

  EXACTILE_DEVICE int32_t box_n() const { return params_.page_box; }

  EXACTILE_DEVICE void load(ptx::uint32_t to, const TensorMap& map, ptx::uint32_t barrier,
                            int32_t column, int32_t key) const {
    const PageTable::Place at = params_.pages.place_of(key);
    ptx::tma_load(to, &map, barrier, column, head_, at.slot, pages_[at.index]);
  }

 private:
  const PrefillParams& params_;
  const int32_t* const pages_;  // of the sequence
  const int32_t head_;
};

}  // namespace exactile::cuda::sm90
