// exactile/tensor.hpp - a tensor as a parameter of the kernels of every backend.
#pragma once

#include <exactile/platform.hpp>

namespace exactile {

/// A packed (tokens, heads, head_dim) tensor. The last dimension is contiguous.
template <class Pointer>
struct Tensor {
  Pointer data;
  int64_t token_stride;  ///< in elements
  int64_t head_stride;   ///< in elements
};

/// K or V; with pages (kv_layout.hpp) a (pages, page_size, heads, head_dim) tensor.
struct KvTensor : Tensor<const void*> {
  int64_t page_stride = 0;  ///< in elements
};

}  // namespace exactile
