// exactile/kv_layout.hpp - where the keys and values of a sequence lie. Every backend's kernels.
//
// A kernel's Traits name a layout, and its loads ask that layout alone:
//
//   Layout::Rows<Element> rows(tensor, k_begin, kv_head);   // of K or V, of one sequence and head
//   rows[n]                                                 // address of the row of key n
//   rows.stride()                                           // from a row to the next, in elements
//   Layout::kOneRun                                         // all rows of a sequence lie so
//
// Loads by TMA (cuda/sm90/boxes.hpp) and by 2D block messages (sycl/xmx) ask it for what they need
// instead of an address.
#pragma once

#include <exactile/platform.hpp>
#include <exactile/tensor.hpp>

namespace exactile {

/// The keys of a sequence follow one another in the packed (total_k, num_heads_kv, head_dim)
/// tensor.
struct ContiguousKv {
  static constexpr bool kOneRun = true;

  template <class Element>
  class Rows {
   public:
    /// k_begin: TileRecord::k_begin.
    EXACTILE_HOST_DEVICE Rows(const Tensor<const void*>& tensor, int32_t k_begin, int32_t kv_head)
        : first_(static_cast<const Element*>(tensor.data) + int64_t{k_begin} * tensor.token_stride +
                 kv_head * tensor.head_stride),
          stride_(tensor.token_stride) {}

    EXACTILE_HOST_DEVICE const Element* operator[](int32_t n) const { return first_ + n * stride_; }
    EXACTILE_HOST_DEVICE int64_t stride() const { return stride_; }

   private:
    const Element* first_;
    int64_t stride_;
  };
};

}  // namespace exactile
