"""Tiles that hold several sequences, on a GPU: against float64, and apart from each other."""

from __future__ import annotations

import numpy as np
import pytest

from abilities import needs
from cases import MASKS, assert_same_bits, make_batch
from cuda_device import HALVES, ROWS, needs_gpu, run

pytestmark = needs_gpu

SHORT_Q = [*[5, 33, 1, 0, 64, 2, 17, 40, 31, 32, 3] * 3, 300, 1, 1, 1, 20, 0, 0, 9]
SHORT_K = [*[5, 30, 9, 7, 64, 0, 17, 41, 60, 32, 3] * 3, 290, 1, 0, 1, 25, 3, 0, 9]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), ROWS)
def test_packed_sequences(family, dtype, head_dim, head_dim_v, mask):
    shape = dict(dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v, heads=(8, 2))
    batch = make_batch(SHORT_Q, SHORT_K, **shape, **MASKS[mask])
    for pack_gqa in False, True:
        got = run(batch, pack_sequences=True, pack_gqa=pack_gqa)
        batch.check(*got)
        if family == "sm80":  # there a tile's sequences are computed one after the other
            for packed, alone in zip(got, run(batch, pack_gqa=pack_gqa), strict=True):
                assert_same_bits(packed, alone)


@needs("nvrtc")
def test_packed_sequences_under_another_policy(family):
    batch = make_batch(SHORT_Q, SHORT_K, dtype="bfloat16", head_dim=128, heads=(8, 2))
    want = run(batch, pack_sequences=True)
    for got, persistent in zip(
        run(batch, pack_sequences=True, pack_gqa=True, scheduler="ValidOnlyIndividual"),
        run(batch, pack_sequences=True, pack_gqa=True),
        strict=True,
    ):
        assert_same_bits(got, persistent)
    batch.check(*want)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_in_a_packed_tile(family, dtype, head_dim, poison):
    """Single values in V: they reach the rows that see them, and none of another sequence."""
    shape = dict(heads=(8, 2), head_dim=head_dim, dtype=dtype)
    batch, clean = (make_batch(SHORT_Q, SHORT_K, **shape, causal=True) for _ in range(2))
    where = np.random.default_rng(1).integers(0, batch.v.shape, (12, 3))
    batch.v[tuple(where.T)] = poison
    own, sees = (np.zeros((batch.q.shape[0], 8, head_dim), bool) for _ in range(2))
    for key, head, column in where:
        b = np.searchsorted(batch.cu_k, key, side="right") - 1
        begin, end = batch.cu_q[b : b + 2]
        first = max(begin, end - (batch.cu_k[b + 1] - key))  # causal: rows from here on
        own[begin:end, 4 * head : 4 * head + 4, column] = True
        sees[first:end, 4 * head : 4 * head + 4, column] = True
    assert sees.any()
    for pack_gqa in False, True:
        options = dict(pack_sequences=True, pack_gqa=pack_gqa)
        (out, lse), (want, want_lse) = run(batch, **options), run(clean, **options)
        assert_same_bits(lse, want_lse)
        # A key that a row of its own sequence does not see may reach that too.
        assert_same_bits(out[~own], want[~own])
        assert not np.isfinite(out[sees].astype(np.float32)).any()
