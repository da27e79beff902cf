# layers.py
import numpy as np

import exactile

lengths = [700, 34, 34, 0, 300]
plan = exactile.plan(
    seqlens_q=lengths,
    num_heads_q=8,
    num_heads_kv=2,
    head_dim=64,
    dtype="float32",
    causal=True,
    scheduler="ValidOnlyIndividual",
    backend="cpu",
)
print(plan)
print(f"{plan.pairs:,} visible pairs of one head, {plan.flops:,} FLOPs, {plan.num_empty} empty")

rng = np.random.default_rng(0)
x = rng.standard_normal((sum(lengths), 8, 64), np.float32)
for layer in range(4):
    x, lse = plan.run(x, x[:, :2], x[:, :2], return_lse=True)
print(x.shape, lse.shape)
