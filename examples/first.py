# first.py
import numpy as np

import exactile

lengths = [700, 34, 34, 0, 300]  # tokens of each sequence; none is legal
cu_seqlens = np.cumsum([0, *lengths])  # where each begins, and where the last ends
rng = np.random.default_rng(0)
q = rng.standard_normal((sum(lengths), 8, 64), np.float32)  # tokens, query heads, head_dim
k = rng.standard_normal((sum(lengths), 2, 64), np.float32)  # tokens, kv heads, head_dim
v = rng.standard_normal((sum(lengths), 2, 64), np.float32)

out = exactile.varlen_prefill(q, k, v, cu_seqlens, causal=True)

expected = np.empty_like(out)
for begin, end in zip(cu_seqlens, cu_seqlens[1:]):
    for head in range(8):
        scores = q[begin:end, head] @ k[begin:end, head // 4].T / 8  # 8 = sqrt(head_dim)
        scores[np.triu_indices(end - begin, 1)] = -np.inf  # no token sees a later one
        weights = np.exp(scores - scores.max(1, keepdims=True, initial=-1e30))
        weights /= weights.sum(1, keepdims=True)
        expected[begin:end, head] = weights @ v[begin:end, head // 4]
print(out.shape, out.dtype, "close:", np.allclose(out, expected, atol=1e-5))
