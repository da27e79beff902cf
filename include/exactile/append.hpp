// exactile/append.hpp - new rows of K and V, written into the pages of a cache. Shared by host and
// device.
#pragma once

#include <exactile/platform.hpp>
#include <exactile/tensor.hpp>

namespace exactile {

/// New rows of K or V, and their cache.
struct AppendTensor {
  Tensor<const void*> from;  ///< (num_tokens, num_heads, head_dim)
  Tensor<void*> to;          ///< of each page: (page_size, num_heads, head_dim)
  int64_t page_stride;       ///< of `to`, in elements
  int64_t head_dim;
};

struct AppendParams {
  AppendTensor k, v;
  const void* slots;    ///< (num_tokens,): page * page_size + row of the page
  int32_t slot_bytes;   ///< of each: 4 or 8
  int64_t slot_stride;  ///< in elements
  int64_t num_tokens, num_heads;
  int64_t num_slots;  ///< of the cache
  int64_t page_size;

  /// Of a token; -1: it is not written. Slots that the cache does not have are not written either.
  EXACTILE_HOST_DEVICE int64_t slot(int64_t token) const {
    const int64_t at = token * slot_stride;
    const int64_t slot = slot_bytes == 8 ? static_cast<const int64_t*>(slots)[at]
                                         : static_cast<const int32_t*>(slots)[at];
    return 0 <= slot && slot < num_slots ? slot : -1;
  }
};

/// Writes columns of one row of K or V into a slot: those of a worker that begins at `begin`.
/// `Lanes` as merge_columns() takes it.
template <class Lanes, class From, class To>
EXACTILE_HOST_DEVICE void append_columns(const AppendTensor& tensor, int64_t token, int64_t head,
                                         int64_t page, int64_t row, int64_t begin, int64_t end) {
  const From* const from = static_cast<const From*>(tensor.from.data) +
                           token * tensor.from.token_stride + head * tensor.from.head_stride;
  To* const to = static_cast<To*>(tensor.to.data) + page * tensor.page_stride +
                 row * tensor.to.token_stride + head * tensor.to.head_stride;
  for (int64_t c = begin; c < end; c += Lanes::kStep) {
    if constexpr (SameAs<From, To>) {
      Lanes::copy(to + c, from + c);
    } else {
      Lanes::store(to + c, Lanes::load(from + c));
    }
  }
}

/// Writes a row of K and of V, where the token has a slot; `lane`: the worker's, one of
/// Lanes::kStep.
template <class Lanes, class From, class To>
EXACTILE_HOST_DEVICE void append_row(const AppendParams& params, int64_t token, int64_t head,
                                     int64_t lane) {
  const int64_t slot = params.slot(token);
  if (slot < 0) return;
  const int64_t page = slot / params.page_size, row = slot % params.page_size;
  append_columns<Lanes, From, To>(params.k, token, head, page, row, lane, params.k.head_dim);
  append_columns<Lanes, From, To>(params.v, token, head, page, row, lane, params.v.head_dim);
}

}  // namespace exactile
