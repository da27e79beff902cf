// exactile/sycl/params.hpp - what the SYCL kernels are told. Shared by host (g++) and device (the
// SYCL runtime's compiler); includes nothing of SYCL.
#pragma once

#include <exactile/mask.hpp>
#include <exactile/platform.hpp>
#include <exactile/tensor.hpp>

namespace exactile::sycl {

/// Element types, as template arguments of Traits. They carry bits: the runtime's own bfloat16
/// class cannot be saved as SPIR-V. element.hpp has their values.
struct Fp16 {
  unsigned short bits;
};
struct Bf16 {
  unsigned short bits;
};

/// Passed by value as a raw kernel argument.
struct PrefillParams {
  Tensor<const void*> q, k, v;
  Tensor<void*> out;
  float* lse;               ///< (num_heads_q, total_q) natural logarithm, or null
  int64_t lse_head_stride;  ///< in elements
  int32_t group;            ///< query heads per kv head
  int32_t tile_heads;       ///< query heads in a tile: group with GQA packing, else 1
  int32_t tile_tokens;      ///< tokens in a full tile: kBlockM, or kBlockM / group
  float scale_log2;         ///< softmax_scale * log2(e), > 0
  Mask mask;
  int32_t* work_groups;  ///< test-only instantiation: [0] counts launched, [1] tiles with work
};

}  // namespace exactile::sycl
