// tests/cpp/cuda_plan.hpp - a plan for the CUDA tests without a GPU: one head, tiles of sm90.
#pragma once

#include "cuda/plan_memory.hpp"

namespace exactile::test {

/// Its lengths, its records and what is launched are the caller's to fill in.
inline Plan plan_of_one_head(int32_t head_dim = 64) {
  Plan plan{.cu_seqlens_q = {},
            .cu_seqlens_k = {},
            .page_size = 0,
            .num_heads_q = 1,
            .num_heads_kv = 1,
            .head_dim = head_dim,
            .head_dim_v = head_dim,
            .dtype = Dtype::kBfloat16,
            .mask = {.left = -1, .right = -1},
            .scheduler = SchedulerKind::kValidOnlyPersistent,
            .order = ListOrder::kNatural,
            .pack_gqa = false,
            .packed_len = 0,
            .backend = Backend::kCuda,
            .sycl_kernel = SyclKernel::kPortable,
            .workers = 1,
            .block_m = 192,
            .block_n = 128,
            .tile_tokens = 192,
            .tile_heads = 1};
  plan.memory = std::make_shared<cuda::DevicePlans>();
  return plan;
}

}  // namespace exactile::test
