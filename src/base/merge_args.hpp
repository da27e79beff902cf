// src/base/merge_args.hpp - arguments of a merge, and its kernels' parameters made of them.
#pragma once

#include <exactile/merge.hpp>
#include <memory>
#include <string>
#include <vector>

#include "base/launch_params.hpp"

namespace exactile {

struct MergeArgs {
  struct Part {
    std::string out_name, lse_name;  ///< for messages
    ArrayRef out;                    ///< (total_q, num_heads, head_dim_v)
    ArrayRef lse;                    ///< float32 (num_heads, total_q)
  };
  std::vector<Part> parts;
  Dtype dtype;                ///< of the parts, and of `out`
  ArrayRef out;               ///< as the parts
  float* lse = nullptr;       ///< (num_heads, total_q), contiguous, made for this call; or null
  int threads = 1;            ///< CPU
  uint64_t stream = 0;        ///< as RunOptions::stream
  void (*check)() = nullptr;  ///< as RunExtras::check
  std::shared_ptr<void> arrays = nullptr;  ///< as RunExtras::arrays

  int64_t total_q() const { return out.shape[0]; }
  int64_t num_heads() const { return out.shape[1]; }
  int64_t head_dim_v() const { return out.shape[2]; }
};

/// `others`: made to hold the parts that do not fit into the parameters.
inline MergeParams merge_params(const MergeArgs& args, std::vector<MergePart>& others) {
  MergeParams params{.first = {},
                     .others = nullptr,
                     .num_parts = static_cast<int32_t>(args.parts.size()),
                     .total_q = args.total_q(),
                     .num_heads = args.num_heads(),
                     .head_dim_v = args.head_dim_v(),
                     .out = tensor_of<void*>(args.out),
                     .lse = args.lse};
  for (std::size_t i = 0; i < args.parts.size(); ++i) {
    const MergeArgs::Part& part = args.parts[i];
    const MergePart made{.out = tensor_of<const void*>(part.out),
                         .lse = static_cast<const float*>(part.lse.data),
                         .lse_head_stride = part.lse.strides[0],
                         .lse_token_stride = part.lse.strides[1]};
    if (i < MergeParams::kInline) {
      params.first[i] = made;
    } else {
      others.push_back(made);
    }
  }
  params.others = others.data();
  return params;
}

}  // namespace exactile
