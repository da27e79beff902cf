// src/cpu/merge.cpp - see merge.hpp.
#include "cpu/merge.hpp"

#include <algorithm>
#include <atomic>

#include "cpu/kernels.hpp"
#include "cpu/thread_pool.hpp"

namespace exactile::cpu {

void merge(const MergeArgs& args) {
  constexpr int64_t kTokens = 16;  // of a turn: a cache line of lse
  std::vector<MergePart> others;
  const MergeParams params = merge_params(args, others);
  const MergeFn merge_tokens = kernel_table().of[static_cast<int>(args.dtype)].merge_tokens;
  const int64_t turns = ceil_div(params.total_q, kTokens);
  std::atomic<int64_t> next{0};
  const auto compute = [&](const Turn& turn) {
    while (!turn.is_over()) {
      const int64_t begin = next++ * kTokens;
      if (begin >= params.total_q) return false;
      merge_tokens(params, begin, std::min(begin + kTokens, params.total_q));
    }
    return true;
  };
  run_on_threads({.threads = static_cast<int>(std::min<int64_t>(args.threads, turns)),
                  .compute = compute,
                  .check = args.check});
}

}  // namespace exactile::cpu
