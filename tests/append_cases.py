"""Cases of `exactile.append_kv` on devices: new rows, caches, and what becomes of those."""

from __future__ import annotations

import numpy as np

from cases import DTYPES

PAGES, PAGE_SIZE, HEADS, DIMS = 7, 5, 3, (64, 100)
UNTOUCHED = 7
"""In all rows of the caches."""


def new_rows(tokens, dtype):
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((tokens, HEADS, dim), np.float32).astype(DTYPES[dtype]) for dim in DIMS
    ]


def caches(dtype):
    return [np.full((PAGES, PAGE_SIZE, HEADS, dim), UNTOUCHED, DTYPES[dtype]) for dim in DIMS]


def some_slots(on_host: bool):
    """Of 20 tokens: some are none, and in device memory some are past the cache."""
    slots = np.random.default_rng(1).permutation(PAGES * PAGE_SIZE)[:20]
    slots[[2, 5]] = -1, -7
    if not on_host:
        slots[[3, 11]] = PAGES * PAGE_SIZE, 2**31 - 1
    return slots


def expected(cache, rows, slots):
    want = cache.copy()
    for row, slot in zip(rows, slots, strict=True):
        if 0 <= slot < PAGES * PAGE_SIZE:
            want[slot // PAGE_SIZE, slot % PAGE_SIZE] = row.astype(cache.dtype)
    return want


SEQUENCES = {
    "block_table": np.array([[3, 6], [0, -1]], np.int32),
    "cu_seqlens": [0, 2, 4],
    "seqused_k": [8, 2],
}
"""Of five tokens, the last of no sequence."""
SLOTS_OF_SEQUENCES = [31, 32, 0, 1, -1]
