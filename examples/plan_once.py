# plan_once.py
import numpy as np, exactile

lengths = [672, 192, 32, 8096]  # tokens of each sequence
cu_seqlens = np.cumsum([0, *lengths])  # as every varlen kernel takes them
q = np.random.randn(sum(lengths), 32, 128).astype(np.float32)
k = np.random.randn(sum(lengths), 8, 128).astype(np.float32)
v = np.random.randn(sum(lengths), 8, 128).astype(np.float32)

shape = dict(num_heads_q=32, num_heads_kv=8, head_dim=128, dtype=q.dtype)
plan = exactile.plan(cu_seqlens, **shape, causal=True)  # once for all layers of a model
print(plan.summary())
out, lse = plan.run(q, k, v, return_lse=True)
