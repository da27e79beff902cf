# own_policy.py
import exactile

reverse = exactile.Scheduler(
    "Reverse",
    source="""
#include <exactile/scheduler.hpp>
struct Reverse : exactile::ValidOnlyIndividual {
  EXACTILE_HOST_DEVICE constexpr Reverse(const Params& list, int group)
      : exactile::ValidOnlyIndividual(list, list.num_tiles() - 1 - group) {}
};
""",
    like="ValidOnlyIndividual",  # whose Params it takes, and as many work-groups
)
plan = exactile.plan(
    seqlens_q=[700, 34, 300],
    num_heads_q=8,
    num_heads_kv=2,
    head_dim=64,
    dtype="bfloat16",
    scheduler=reverse,
    backend="cuda",
)
