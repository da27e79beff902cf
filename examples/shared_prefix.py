# shared_prefix.py
import numpy as np

import exactile

prefix = 1024  # tokens that all sequences begin with: a system prompt
lengths = [40, 1, 129, 7, 64, 1]  # new tokens of each, which follow it
cu_seqlens = np.cumsum([0, *lengths])
total = sum(lengths)
rng = np.random.default_rng(0)
q = rng.standard_normal((total, 8, 64), np.float32)  # tokens, query heads, head_dim
k, v = rng.standard_normal((2, total, 2, 64), np.float32)  # of the new tokens
prefix_k, prefix_v = rng.standard_normal((2, prefix, 2, 64), np.float32)  # once, for all

# Every new token sees the whole prefix, so to attention all queries are one sequence.
shared = exactile.varlen_prefill(q, prefix_k, prefix_v, [0, total], [0, prefix], return_lse=True)
own = exactile.varlen_prefill(q, k, v, cu_seqlens, causal=True, return_lse=True)
out = exactile.merge(*shared, *own)

# The same without sharing: the prefix's keys before those of each sequence.
pieces = [slice(begin, end) for begin, end in zip(cu_seqlens, cu_seqlens[1:])]
all_k = np.concatenate([x for piece in pieces for x in (prefix_k, k[piece])])
all_v = np.concatenate([x for piece in pieces for x in (prefix_v, v[piece])])
cu_keys = np.cumsum([0, *(prefix + length for length in lengths)])
expected = exactile.varlen_prefill(q, all_k, all_v, cu_seqlens, cu_keys, causal=True)
assert np.allclose(out, expected, atol=1e-5)
print(f"{total + prefix:,} keys instead of {len(all_k):,}")
