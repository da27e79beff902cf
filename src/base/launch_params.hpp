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
  return a.shape[dimension] > 1 ? a.strides[dimension] : a.head_dim();
}

/// Of (tokens, heads, head_dim), also of each page.
template <class Pointer>
Tensor<Pointer> tensor_of(const ArrayRef& a) {
  return {.data = a.data,
          .token_stride = used_stride(a, a.rank - 3),
          .head_stride = used_stride(a, a.rank - 2)};
}

inline KvTensor kv_tensor_of(const ArrayRef& a) {
  return {tensor_of<const void*>(a), a.rank > 3 ? used_stride(a, 0) : 0};
}

inline const float* floats_of(const std::optional<ArrayRef>& array) {
  return array ? static_cast<const float*>(array->data) : nullptr;
}

/// `cu_seqlens_q`: where the kernels read it.
inline ScoreParams score_params(const RunOptions& options, const int32_t* cu_seqlens_q) {
  ScoreParams params{.scale_inverse = static_cast<float>(1 / options.softmax_scale),
                     .cu_seqlens_q = cu_seqlens_q,
                     .sinks = floats_of(options.sinks)};
  if (options.softcap > 0) {
    params.softcap = static_cast<float>(options.softcap / options.softmax_scale);
    params.softcap_inverse = static_cast<float>(options.softmax_scale / options.softcap);
  }
  if (options.alibi_slopes) {
    const ArrayRef& slopes = *options.alibi_slopes;
    params.alibi_slopes = floats_of(slopes);
    params.batch = slopes.rank == 1 ? 1 : static_cast<int32_t>(slopes.shape[0]);
    params.alibi_batch_stride = slopes.rank == 1 ? 0 : slopes.strides[0];
  }
  return params;
}

inline PageTable page_table(const Plan& plan, const PrefillArgs& args) {
  if (!args.options.block_table) return {};
  const ArrayRef& table = *args.options.block_table;
  return {.pages = static_cast<const int32_t*>(table.data),
          .row_stride = table.strides[0],
          .page_size = plan.page_size,
          .num_pages = static_cast<int32_t>(args.k.shape[0])};
}

/// `cu_seqlens_q`: where the kernels read it.
inline CommonParams common_params(const Plan& plan, const PrefillArgs& args,
                                  const int32_t* cu_seqlens_q) {
  const int32_t tile_heads = plan.heads_per_tile();
  return {.q = tensor_of<const void*>(args.q),
          .k = kv_tensor_of(args.k),
          .v = kv_tensor_of(args.v),
          .out = tensor_of<void*>(args.out),
          .lse = args.options.lse,
          .lse_head_stride = args.q.shape[0],
          .group = plan.group(),
          .tile_heads = tile_heads,
          .tile_heads_inverse = ceil_div(1 << 16, tile_heads),
          .tile_tokens = plan.tile_tokens,
          .scale_log2 = static_cast<float>(args.options.softmax_scale * M_LOG2E),
          .mask = plan.mask,
          .scores = score_params(args.options, cu_seqlens_q),
          .pages = page_table(plan, args)};
}

/// What policies read, where the kernels read it. The first four are of sequence_record().
struct ScheduleMemory {
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;
  const int32_t* seqused_q = nullptr;
  const int32_t* seqused_k = nullptr;
  const TileRecord* records;         ///< null for PaddedGrid
  const int32_t* planned = nullptr;  ///< CompactList::planned
  int32_t* counter = nullptr;
};

/// Where lengths that may be left out lie, as sequence_record() takes them.
inline const int32_t* data_or_null(std::span<const int32_t> lengths) {
  return lengths.empty() ? nullptr : lengths.data();
}

/// In the plan's own memory.
inline ScheduleMemory host_lists(const Plan& plan) {
  return {.cu_seqlens_q = plan.cu_seqlens_q.data(),
          .cu_seqlens_k = plan.is_paged() ? nullptr : plan.cu_seqlens_k.data(),
          .seqused_q = data_or_null(plan.seqused_q),
          .seqused_k = data_or_null(plan.seqused_k),
          .records = plan.records.get()};
}

/// A policy's Params: these three, and a new kind is one more branch.
template <class Params>
Params schedule_params(const Plan& plan, const ScheduleMemory& memory) {
  if constexpr (SameAs<Params, PaddedGrid>) {
    return {.cu_seqlens_q = memory.cu_seqlens_q,
            .cu_seqlens_k = memory.cu_seqlens_k,
            .batch = plan.batch(),
            .num_heads = plan.tile_heads,
            .max_m_blocks = plan.max_m_blocks,
            .tile_tokens = plan.tile_tokens,
            .seqused_q = memory.seqused_q,
            .seqused_k = memory.seqused_k};
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
