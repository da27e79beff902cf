// src/base/append_args.hpp - arguments of an append to a cache, and its kernels' parameters made of
// them.
#pragma once

#include <exactile/append.hpp>
#include <memory>
#include <optional>
#include <vector>

#include "base/launch_params.hpp"

namespace exactile {

struct AppendArgs {
  ArrayRef k_new, v_new;      ///< (num_tokens, num_heads, head_dim)
  ArrayRef k_cache, v_cache;  ///< (num_pages, page_size, num_heads, head_dim)
  ArrayRef slots;             ///< int32 or int64 (num_tokens,)
  /// A checked copy of `slots`, where these lie in CPU memory.
  std::optional<std::vector<int64_t>> host_slots = {};
  int threads = 1;                         ///< CPU
  uint64_t stream = 0;                     ///< as RunOptions::stream
  void (*check)() = nullptr;               ///< as RunExtras::check
  std::shared_ptr<void> arrays = nullptr;  ///< as RunExtras::arrays

  int64_t num_tokens() const { return k_new.shape[0]; }
  int64_t num_heads() const { return k_new.shape[1]; }
  int64_t num_slots() const { return k_cache.shape[0] * k_cache.shape[1]; }
};

/// A KvTensor that is written.
inline AppendTensor append_tensor(const ArrayRef& from, const ArrayRef& cache) {
  return {.from = tensor_of<const void*>(from),
          .to = tensor_of<void*>(cache),
          .page_stride = kv_tensor_of(cache).page_stride,
          .head_dim = from.head_dim()};
}

/// `slots`: the checked copy, where the kernel reads it; null: those of the arguments.
inline AppendParams append_params(const AppendArgs& args, const int64_t* slots) {
  const bool copied = slots != nullptr;
  return {.k = append_tensor(args.k_new, args.k_cache),
          .v = append_tensor(args.v_new, args.v_cache),
          .slots = copied ? slots : args.slots.data,
          .slot_bytes = copied ? 8 : dtype_bytes(args.slots.dtype),
          .slot_stride = copied ? 1 : args.slots.strides[0],
          .num_tokens = args.num_tokens(),
          .num_heads = args.num_heads(),
          .num_slots = args.num_slots(),
          .page_size = args.k_cache.shape[1]};
}

}  // namespace exactile
