"""Values that break careless kernels, on a GPU: Inf and NaN, scores as large as a float."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import exactile
from cases import MASKS, assert_same_bits, make_batch, scale_scores
from cuda_device import HALVES, ROWS, needs_gpu, run

pytestmark = needs_gpu

# Several tiles, one, and many in one; queries beside more keys and fewer.
LENGTHS = ([300, 1, 0, 700, 64, 20, 11, 5], [300, 500, 5, 650, 64, 22, 9, 5])


def rows_that_see(batch, key, further=0):
    """(total_q,) bool: rows that see a key of the packed tensor, or would with a mask as much
    wider on each side."""
    b = np.searchsorted(batch.cu_k, key, side="right") - 1
    begin, end = batch.cu_q[b : b + 2]
    position = np.arange(end - begin) + (batch.cu_k[b + 1] - batch.cu_k[b]) - (end - begin)
    left, right = batch.window
    if batch.causal:
        right = 0
    distance = key - batch.cu_k[b] - position
    seen_left = (left < 0) | (distance >= -left - further)
    seen_right = (right < 0) | (distance <= right + further)
    sees = np.zeros(batch.q.shape[0], bool)
    sees[begin:end] = seen_left & seen_right
    return sees


@pytest.mark.parametrize("mask", [name for name in MASKS if name != "full"])
@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), ROWS)
def test_how_far_a_value_reaches(family, dtype, head_dim, head_dim_v, mask):
    """Inf and NaN in V: all rows that see the key, and no row further from these than a tile and a
    key block; those keep every bit."""
    shape = dict(heads=(8, 2), head_dim=head_dim, head_dim_v=head_dim_v, dtype=dtype)
    rng = np.random.default_rng(1)
    for poison, pack_gqa in itertools.product((np.nan, np.inf), (False, True)):
        clean, batch = (make_batch(*LENGTHS, **shape, **MASKS[mask]) for _ in range(2))
        plan = exactile.plan(
            batch.cu_q,
            batch.cu_k,
            num_heads_q=8,
            num_heads_kv=2,
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            dtype=dtype,
            backend="cuda",
            pack_gqa=pack_gqa,
            pack_sequences=False,
            **MASKS[mask],
        )
        sees, reached = (np.zeros((batch.q.shape[0], 8, head_dim_v), bool) for _ in range(2))
        for key, head, column in rng.integers(0, batch.v.shape, (4, 3)):
            batch.v[key, head, column] = poison
            heads = slice(4 * head, 4 * head + 4)
            sees[rows_that_see(batch, key), heads, column] = True
            further = plan.tile_tokens + plan.block_n
            reached[rows_that_see(batch, key, further), heads, column] = True
        assert sees.any()
        (out, lse), (want, want_lse) = run(batch, pack_gqa=pack_gqa), run(clean, pack_gqa=pack_gqa)
        assert_same_bits(lse, want_lse)
        assert_same_bits(out[~reached], want[~reached])
        assert not np.isfinite(out[sees].astype(np.float32)).any()


@pytest.mark.parametrize("mask", [name for name in MASKS if name != "full"])
@pytest.mark.parametrize("dtype", HALVES)
def test_keys_that_a_row_does_not_see(family, dtype, mask):
    """NaN in K changes no bit of a row that does not see it."""
    clean, batch = (
        make_batch(*LENGTHS, dtype=dtype, head_dim=128, heads=(8, 2), **MASKS[mask])
        for _ in range(2)
    )
    reached = np.zeros(batch.q.shape[:2], bool)
    for key, head in np.random.default_rng(2).integers(0, batch.k.shape[:2], (12, 2)):
        batch.k[key, head, 3] = np.nan
        reached[rows_that_see(batch, key), 4 * head : 4 * head + 4] = True
    for options in (
        dict(pack_sequences=packed, pack_gqa=gqa) for packed in (0, 1) for gqa in (0, 1)
    ):
        options = {name: bool(value) for name, value in options.items()}
        (out, lse), (want, want_lse) = run(batch, **options), run(clean, **options)
        assert_same_bits(lse[~reached.T], want_lse[~reached.T])
        assert_same_bits(out[~reached], want[~reached])
        assert np.isnan(out[reached].astype(np.float32)).all()


@pytest.mark.parametrize("mask", ["full", "causal", "window"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("largest", [1e2, 1e4, 1e9, 1e18, 1e30])
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_large_scores(family, head_dim, largest, order, mask):
    """Of bfloat16, up to 1e30: the rounding of a product of that size may not show."""
    lengths = [300, 90, 700]
    batch = make_batch(lengths, dtype="bfloat16", head_dim=head_dim, heads=(4, 2), **MASKS[mask])
    root = np.float32(np.sqrt(largest))
    scale_scores(batch, lengths, root, order)
    # Half of the rows have ordinary scores, beside large ones in their tile.
    batch.q[1::2] = (batch.q[1::2].astype(np.float32) / root).astype(batch.q.dtype)
    out, lse = run(batch, pack_gqa=True)
    batch.check(out, lse)
    for options in (dict(pack_gqa=False), dict(pack_gqa=False, scheduler="Individual")):
        for got, want in zip(run(batch, **options), (out, lse), strict=True):
            assert_same_bits(got, want)
    batch.check(*run(batch, pack_sequences=True))
