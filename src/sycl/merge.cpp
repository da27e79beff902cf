// src/sycl/merge.cpp - refuses, or enqueues the kernel of a merge.
#include "sycl/merge.hpp"

#include "sycl/reachable.hpp"
#include "sycl/row_launch.hpp"

namespace exactile::sycl {
std::string merge_refusal(const MergeArgs& args) {
  Queue* const queue = queue_at(args.stream);
  std::string refused = refuse_no_queue(queue);
  if (refused.empty()) refused = refuse_context(queue, "out", args.out);
  for (const MergeArgs::Part& part : args.parts) {
    if (refused.empty()) refused = refuse_context(queue, part.out_name, part.out);
    if (refused.empty()) refused = refuse_context(queue, part.lse_name, part.lse);
  }
  return refused;
}

void merge(const MergeArgs& args) {
  std::vector<MergePart> others;
  MergeParams params = merge_params(args, others);
  const auto uploaded = upload(queue_at(args.stream), others);
  if (uploaded) params.others = static_cast<MergePart*>(address_of(uploaded));
  launch_rows(queue_at(args.stream), MergeSpec{args.dtype}, params,
              {.count = params.total_q * params.num_heads},
              {.arrays = args.arrays, .memory = uploaded});
}

}  // namespace exactile::sycl
