"""Golden numbers that several tests compare with: the batch of the README and its counts."""

import exactile

# intel/sycl-tla pull request 516: 16 sequences, 32 query and 8 kv heads, head_dim 128, kBlockM 128.
ZIPF = [672, 192, 32, 320, 32, 96, 32, 32, 8096, 32, 4032, 32, 32, 32, 160, 32]
GOLDEN = dict(num_heads_q=32, num_heads_kv=8, head_dim=128, dtype="bfloat16")

CUDA_DEVICES = exactile.info()["backends"]["cuda"]["devices"]
CUDA_BLOCK_M = 192 if all(x["compute_capability"] == (9, 0) for x in CUDA_DEVICES) else 128
"""Rows of a tile at head_dim 128: without a GPU, plans are for a Hopper one."""

# Work-groups of the padded grid and tiles, by rows of a tile.
ZIPF_GRID = {128: (32_768, 3_808), 192: (22_016, 2_624)}
