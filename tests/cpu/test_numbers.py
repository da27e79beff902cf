"""Numbers that are hard for an online softmax, on the CPU: large scores, long rows, Inf and NaN."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import exactile
from cases import (
    DTYPES,
    LARGEST,
    POISONED,
    assert_same_bits,
    batch_with_scores,
    make_batch,
    poisoned_batches,
)


@pytest.mark.parametrize("order", ["random", "rising"])
@pytest.mark.parametrize(
    ("dtype", "largest"), [(dtype, x) for dtype, all_of in LARGEST.items() for x in all_of]
)
def test_large_scores(dtype, largest, order):
    batch = batch_with_scores(dtype, largest, 1300, order)
    out, lse = batch.run()
    assert np.isfinite(out.astype(np.float32)).all()
    np.testing.assert_allclose(lse[0], largest * 125 / 128, rtol=1e-5)
    batch.check(out, lse)


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e20, 1e35])
def test_scale_and_scores_of_opposite_sizes(scale):
    """Scores of ordinary size whose factors are not."""
    plain, batch = make_batch([100]), make_batch([100])
    factor = np.float32(2.0 ** np.round(-np.log2(scale) / 2))
    batch.q *= factor
    batch.k *= factor
    scaled = exactile.varlen_prefill(
        batch.q, batch.k, batch.v, batch.cu_q, softmax_scale=scale, return_lse=True
    )
    want = exactile.varlen_prefill(
        plain.q,
        plain.k,
        plain.v,
        plain.cu_q,
        softmax_scale=scale * float(factor) ** 2,
        return_lse=True,
    )
    for got, expected in zip(scaled, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scores", ["equal", "random"])
@pytest.mark.parametrize("values", ["constant", "noise"])
@pytest.mark.parametrize("keys", [10_000, 100_000, 1_000_000])
def test_error_does_not_grow_with_length(keys, values, scores):
    """Relative error in float32 over three lengths.

    PyTorch 2.13's scaled_dot_product_attention: equal scores 1.1e-6, 2.5e-6, 1.4e-5; random scores
    and noise 3.8e-7, 1.3e-6, 4.4e-6.
    """
    rng = np.random.default_rng(0)
    # Keys and values overlap in memory, each one element behind the one before.
    x, y = rng.standard_normal((2, keys + 63)).astype(np.float32)
    y = 1 + np.float32(0.01) * y if values == "noise" else np.full_like(y, 0.1)
    k, v = (np.lib.stride_tricks.sliding_window_view(a, 64)[:, None] for a in (x, y))
    q = rng.standard_normal((3, 1, 64)).astype(np.float32)
    q *= scores == "random"
    out, lse = exactile.varlen_prefill(q, k, v, [0, 3], [0, keys], return_lse=True)
    for row in range(3):
        score = np.correlate(x.astype(np.float64), q[row, 0].astype(np.float64)) / 8
        p = np.exp(score - score.max())
        want = np.correlate(y.astype(np.float64), p) / p.sum()
        bound = 1.0e-6 if scores == "equal" else 3e-7
        assert np.abs(out[row, 0] / want - 1).max() < bound
        assert abs(lse[0, row] / (score.max() + np.log(p.sum())) - 1) < 3e-7


def test_reference_that_moves_between_groups_of_blocks():
    """Scores that rise over thousands of keys: sums so far are scaled again and again."""
    for dtype in DTYPES:
        batch = make_batch([4], [9000], heads=(2, 1), dtype=dtype)
        batch.k[:] *= np.linspace(0, 8, 9000)[:, None, None].astype(batch.k.dtype)
        batch.check(*batch.run())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", POISONED)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_at_a_key_reaches_the_rows_that_see_it(dtype, mask, poison):
    """No bit of another row, whatever the tile; and all schedules agree on every bit."""
    clean, dirty, sees = poisoned_batches(dtype, mask, poison)
    want, want_lse = clean.run()
    first = None
    for scheduler, pack_gqa in itertools.product(exactile.SCHEDULERS, (False, True)):
        out, lse = dirty.run(scheduler=scheduler, pack_gqa=pack_gqa)
        assert_same_bits(out[~sees], want[~sees])
        assert_same_bits(lse[:, ~sees], want_lse[:, ~sees])
        assert not np.isfinite(out[sees].astype(np.float32)).any()
        first = first or (out, lse)
        assert_same_bits(out, first[0])
        assert_same_bits(lse, first[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisoned_keys_beside_an_odd_border(dtype):
    """Many heads of one token in a tile: a block ends in the middle of a pair of keys."""
    clean, dirty = (make_batch([6], [8], heads=(100, 1), dtype=dtype, causal=True) for _ in "ab")
    dirty.v[-5:] = np.nan
    want, got = clean.run()[0], dirty.run(pack_gqa=True)[0]
    assert_same_bits(got[0], want[0])
    assert np.isnan(got[1:].astype(np.float32)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_poison_beyond_a_group_of_blocks(dtype):
    """A long sequence, and rows on both sides of its poisoned key."""
    clean, dirty = (make_batch([3000], heads=(1, 1), dtype=dtype, causal=True) for _ in range(2))
    dirty.v[2500] = np.inf
    want, got = clean.run()[0], dirty.run()[0]
    assert_same_bits(got[:2500], want[:2500])
    assert (got[2500:].astype(np.float32) == np.inf).all()


def test_scores_that_overflow():
    """A score of +Inf makes its row NaN, one of -Inf has no weight; no other row is touched."""
    batch = make_batch([5], heads=(1, 1), causal=True)
    clean = batch.run()[0]
    batch.k[2] = 3e38
    batch.q[2:] = 0
    batch.q[2, 0, :2] = 1e30  # +Inf for row 2
    batch.q[3, 0, :2] = -1e30  # -Inf for row 3
    out, lse = batch.run()
    assert_same_bits(out[:2], clean[:2])
    assert np.isnan(out[2]).all()
    assert np.isnan(lse[0, 2])
    assert np.isfinite(out[3:]).all()
