"""Results to be merged, what float64 makes of them, and attention in parts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from cases import DTYPES, Batch, assert_same_bits, cumulate

SHAPES = [(1, 1, 64), (37, 3, 128), (16, 2, 100), (5, 4, 256), (3, 2, 1)]
"""(total_q, num_heads, head_dim_v)."""


def draw_parts(shape, num_parts, dtype, *, seed=0, spread=3.0):
    """(results, log-sum-exps): each result of another size, so that an exchange is seen."""
    rng = np.random.default_rng(seed)
    outs = [
        (rng.standard_normal(shape, np.float32) * (1 + i)).astype(DTYPES[dtype])
        for i in range(num_parts)
    ]
    lses = [
        spread * rng.standard_normal((shape[1], shape[0]), np.float32) for _ in range(num_parts)
    ]
    return outs, lses


def merge_float64(outs, lses):
    """(out, lse) by the definition."""
    lses = np.array([x.astype(np.float64) for x in lses])
    largest = np.where(np.isneginf(lses).all(0), 0, lses.max(0))
    relative = np.exp(lses - largest)
    total = relative.sum(0)
    with np.errstate(divide="ignore"):
        lse = largest + np.log(total)
    weights = relative / np.where(total == 0, 1, total)
    out = np.zeros(outs[0].shape)
    for x, weight in zip(outs, weights, strict=True):
        seen = weight.T[..., None]
        out += np.where(seen > 0, x.astype(np.float64), 0) * seen
    return out, lse


def check_merged(got, outs, lses):
    """Within the rounding of the dtype, and of float32 weights and sums."""
    out, lse = (np.asarray(x) for x in got)
    want, want_lse = merge_float64(outs, lses)
    finite = np.isfinite(want_lse)
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(want_lse))
    np.testing.assert_allclose(lse[finite], want_lse[finite], rtol=2e-7, atol=1e-6)
    unit = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[out.dtype.name]
    looked_at = [
        np.where(np.isneginf(sums).T[..., None], 0, np.abs(x.astype(np.float64)))
        for x, sums in zip(outs, lses, strict=True)
    ]
    smallest = {"float32": 1e-38, "float16": 2**-24, "bfloat16": 1e-38}[out.dtype.name]
    allowed = unit * np.abs(want) + 1e-6 * len(outs) * np.max(looked_at, axis=0) + smallest
    assert (np.abs(out.astype(np.float64) - want) <= allowed).all()


def check_against_float64(merge, shape, num_parts, dtype):
    """Of parts that saw no key for some rows, and hold NaN there; merge(outs, lses): (out, lse)."""
    outs, lses = draw_parts(shape, num_parts, dtype)
    rng = np.random.default_rng(1)
    for x, lse in zip(outs, lses, strict=True):
        unseen = rng.random(lse.shape) < 0.3
        lse[unseen] = -np.inf
        x[unseen.T] = np.nan
    got = merge(outs, lses)
    check_merged(got, outs, lses)
    seen_once = sum(np.isfinite(x).astype(int) for x in lses) == 1
    for x, lse in zip(outs, lses, strict=True):
        rows = seen_once & np.isfinite(lse)
        assert_same_bits(got[0][rows.T], x[rows.T])
        assert_same_bits(got[1][rows], lse[rows])


def check_a_sum_that_is_no_number(merge, value):
    """It makes its row NaN, and no other."""
    outs, lses = draw_parts((6, 2, 64), 3, "bfloat16")
    want, want_lse = merge(outs, lses)
    lses[1][1, 3] = value
    out, lse = merge(outs, lses)
    assert np.isnan(out[3, 1].astype(np.float32)).all()
    assert np.isnan(lse[1, 3])
    out[3, 1], lse[1, 3] = want[3, 1], want_lse[1, 3]
    assert_same_bits(out, want)
    assert_same_bits(lse, want_lse)


def split_attention(batch: Batch, num_parts: int):
    """(results, log-sum-exps) of a batch's queries over parts of every sequence's keys.

    Under a causal mask the last part is the keys that stand beside the queries, the others are
    seen by every row.
    """
    lens_k = np.diff(batch.cu_k)
    shared = lens_k - np.diff(batch.cu_q) if batch.causal else lens_k
    num_shared = num_parts - 1 if batch.causal else num_parts
    bounds = [shared * i // num_shared for i in range(num_shared + 1)]
    if batch.causal:
        bounds.append(lens_k)
    outs, lses = [], []
    for part, (begins, ends) in enumerate(itertools.pairwise(bounds)):
        pieces = zip(begins, ends, batch.cu_k[:-1], strict=True)
        keys = np.concatenate([np.arange(b, e, dtype=int) + first for b, e, first in pieces])
        piece = replace(
            batch,
            k=batch.k[keys],
            v=batch.v[keys],
            cu_k=cumulate(ends - begins),
            causal=batch.causal and part == num_parts - 1,
        )
        out, lse = piece.run()
        outs.append(out)
        lses.append(lse)
    return outs, lses
