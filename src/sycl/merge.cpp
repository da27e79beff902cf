// src/sycl/merge.cpp - see merge.hpp.
#include "sycl/merge.hpp"

#include "sycl/reachable.hpp"
#include "sycl/row_launch.hpp"

namespace exactile::sycl {
namespace {

Queue* queue_of(const MergeArgs& args) { return reinterpret_cast<Queue*>(args.stream); }

}  // namespace

std::string merge_refusal(const MergeArgs& args) {
  Queue* const queue = queue_of(args);
  if (!queue) return "expected a SYCL queue to run on, got none";
  std::string refused = refuse_context(queue, "out", args.out);
  for (const MergeArgs::Part& part : args.parts) {
    if (refused.empty()) refused = refuse_context(queue, part.out_name, part.out);
    if (refused.empty()) refused = refuse_context(queue, part.lse_name, part.lse);
  }
  return refused;
}

void merge(const MergeArgs& args) {
  std::vector<MergePart> others;
  MergeParams params = merge_params(args, others);
  const auto uploaded = upload(queue_of(args), others);
  if (uploaded) params.others = static_cast<MergePart*>(address_of(uploaded));
  launch_rows(queue_of(args), MergeSpec{args.dtype}, params,
              {.count = params.total_q * params.num_heads},
              {.arrays = args.arrays, .uploaded = uploaded});
}

}  // namespace exactile::sycl
