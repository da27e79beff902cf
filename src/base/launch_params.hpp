// src/base/launch_params.hpp - fills the kernel parameters that all backends share.
#pragma once

#include <cmath>
#include <exactile/params.hpp>

#include "base/plan.hpp"
#include "base/policies.hpp"
#include "base/run_args.hpp"

namespace exactile {

/// The stride of a dimension of size 1 is never used.
inline int64_t used_stride(const ArrayRef& a, int dimension) {
  return a.shape[dimension] > 1 ? a.strides[dimension] : a.shape[2];
}

template <class Pointer>
Tensor<Pointer> tensor_of(const ArrayRef& a) {
  return {.data = a.data, .token_stride = used_stride(a, 0), .head_stride = used_stride(a, 1)};
}

inline CommonParams common_params(const Plan& plan, const PrefillArgs& args) {
  const int32_t tile_heads = plan.heads_per_tile();
  return {.q = tensor_of<const void*>(args.q),
          .k = {tensor_of<const void*>(args.k)},
          .v = {tensor_of<const void*>(args.v)},
          .out = tensor_of<void*>(args.out),
          .lse = args.options.lse,
          .lse_head_stride = plan.total_q(),
          .group = plan.group(),
          .tile_heads = tile_heads,
          .tile_heads_inverse = ceil_div(1 << 16, tile_heads),
          .tile_tokens = plan.tile_tokens,
          .scale_log2 = static_cast<float>(args.options.softmax_scale * M_LOG2E),
          .mask = plan.mask};
}

/// What policies read, where the kernels read it.
struct ScheduleMemory {
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;
  const TileRecord* records;         ///< null for PaddedGrid
  const int32_t* planned = nullptr;  ///< CompactList::planned
  int32_t* counter = nullptr;
};

/// A policy's Params: these three, and a new kind is one more branch.
template <class Params>
Params schedule_params(const Plan& plan, const ScheduleMemory& memory) {
  if constexpr (SameAs<Params, PaddedGrid>) {
    return {.cu_seqlens_q = memory.cu_seqlens_q,
            .cu_seqlens_k = memory.cu_seqlens_k,
            .batch = plan.batch(),
            .num_heads = plan.tile_heads,
            .max_m_blocks = plan.max_m_blocks,
            .tile_tokens = plan.tile_tokens};
  } else if constexpr (SameAs<Params, CompactList>) {
    return {.records = memory.records,
            .num_records = static_cast<int32_t>(plan.num_records),
            .num_heads = plan.tile_heads,
            .head_major = plan.order == ListOrder::kHeadMajor,
            .planned = memory.planned};
  } else {
    static_assert(SameAs<Params, CountedList>);
    return {schedule_params<CompactList>(plan, memory), memory.counter,
            static_cast<int32_t>(plan.launched)};
  }
}

}  // namespace exactile
