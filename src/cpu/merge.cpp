// src/cpu/merge.cpp - merges results, in ranges of rows that threads take.
#include "cpu/merge.hpp"

#include "cpu/kernels.hpp"
#include "cpu/token_turns.hpp"

namespace exactile::cpu {

void merge(const MergeArgs& args) {
  std::vector<MergePart> others;
  const MergeParams params = merge_params(args, others);
  const MergeFn merge_tokens = kernel_table().of[static_cast<int>(args.dtype)].merge_tokens;
  for_tokens(params.total_q, args.threads, args.check,
             [&](int64_t begin, int64_t end) { merge_tokens(params, begin, end); });
}

}  // namespace exactile::cpu
