"""Values that break careless kernels, on SYCL: large scores, long rows, Inf and NaN."""

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
    scale_scores,
)
from sycl_device import compile_ahead, dpnp, needs_device, put, run, small_plan

pytestmark = needs_device

KERNELS = ["portable", "xmx_emulated"]
DTYPES_OF = {"portable": list(DTYPES), "xmx_emulated": ["float16", "bfloat16"]}
EACH = [(kernel, dtype) for kernel in KERNELS for dtype in DTYPES_OF[kernel]]


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    """All that this file runs, compiled on both cores."""
    with pytest.MonkeyPatch.context() as patch:
        plans = []
        for kernel, dtype in EACH:
            patch.setenv("EXACTILE_SYCL_KERNEL", kernel)
            policies = exactile.SCHEDULERS if kernel == "portable" else ["ValidOnlyPersistent"]
            plans += [small_plan(dtype, 64, 64, policy) for policy in policies]
        compile_ahead(plans)


@pytest.fixture
def kernel(request, monkeypatch) -> str:
    monkeypatch.setenv("EXACTILE_SYCL_KERNEL", request.param)
    return request.param


each = pytest.mark.parametrize(("kernel", "dtype"), EACH, indirect=["kernel"])
WIDE = [(kernel, dtype) for kernel, dtype in EACH if dtype != "float16"]
each_of_wide_range = pytest.mark.parametrize(("kernel", "dtype"), WIDE, indirect=["kernel"])


@each
@pytest.mark.parametrize("order", ["random", "rising"])
def test_large_scores(kernel, dtype, order):
    """Exact in float32, in rows of one sign and of the other."""
    for largest in LARGEST[dtype]:
        batch = batch_with_scores(dtype, largest, 700, order)
        out, lse = run(batch)
        np.testing.assert_allclose(lse[0], largest * 125 / 128, rtol=1e-5)
        batch.check(out, lse)


@pytest.mark.parametrize(
    ("kernel", "dtype", "largest"),
    [(*one, largest) for one in EACH for largest in (1e2, 1e4, 1e6)]
    + [(*one, largest) for one in WIDE for largest in (1e9, 1e18, 1e30)],
    indirect=["kernel"],
)
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_large_scores_beside_ordinary_ones(kernel, dtype, largest, order):
    """Of random q and k, half of the rows with ordinary scores: these keep every bit."""
    lengths = [150, 31]
    plain, batch = (make_batch(lengths, dtype=dtype, causal=True) for _ in range(2))
    scale_scores(batch, lengths, np.float32(np.sqrt(largest)), order)
    batch.q[1::2] = (batch.q[1::2].astype(np.float32) / largest).astype(batch.q.dtype)
    out, lse = run(batch)
    batch.check(out, lse)
    plain.k[:], plain.q[:] = batch.k, batch.q
    plain.q[::2] = 0
    want, want_lse = run(plain)
    assert_same_bits(out[1::2], want[1::2])
    assert_same_bits(lse[:, 1::2], want_lse[:, 1::2])
    for got, expected in zip(run(batch, pack_gqa=True, workers=1), (out, lse), strict=True):
        assert_same_bits(got, expected)


@each
@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1e20, 1e37])
def test_scale_and_scores_of_opposite_sizes(kernel, dtype, scale):
    """Scores of ordinary size whose factors are not."""
    if dtype == "float16":
        scale = {1e-37: 2.0**-8, 1e-20: 2.0**-4, 1e20: 2.0**4, 1e37: 2.0**8}[scale]
    plain, batch = make_batch([100], dtype=dtype), make_batch([100], dtype=dtype)
    factor = np.float32(2.0 ** np.round(-np.log2(scale) / 2))
    batch.q *= factor.astype(batch.q.dtype)
    batch.k *= factor.astype(batch.k.dtype)
    scaled = run(batch, softmax_scale=scale)
    want = run(plain, softmax_scale=scale * float(factor) ** 2)
    for got, expected in zip(scaled, want, strict=True):
        got, expected = got.astype(np.float32), expected.astype(np.float32)
        # The smallest factors of float16 have fewer digits.
        tolerance = 1e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@each_of_wide_range
def test_lowest_scores(kernel, dtype):
    """Rows whose scores are all far below 0, to the end of a float's range once scaled."""
    batch = make_batch([40], dtype=dtype, causal=True)
    batch.q[:] = 0
    batch.q[:, :, 0] = 2.0**62
    batch.k[:, :, 0] = -(2.0**62)
    out, lse = run(batch, softmax_scale=8.0)
    np.testing.assert_allclose(lse, -(2.0**127), rtol=1e-6)
    mean = np.cumsum(batch.v.astype(np.float64), axis=0) / np.arange(1, 41)[:, None, None]
    np.testing.assert_allclose(out[:, 0].astype(np.float64), mean[:, 0], rtol=0.01, atol=0.01)


def relative_errors(dtype, keys, values, scores):
    """(of out, of lse) of three rows over so many keys."""
    rng = np.random.default_rng(0)
    k = rng.standard_normal((keys, 1, 64), np.float32)
    if values != "noise":
        v = np.full((keys, 1, 64), values, np.float32)
    else:
        v = 1 + np.float32(0.01) * rng.standard_normal((keys, 1, 64), np.float32)
    q = rng.standard_normal((3, 1, 64), np.float32) * (scores == "random")
    q, k, v = (x.astype(DTYPES[dtype]) for x in (q, k, v))
    out, lse = exactile.varlen_prefill(
        *(put(x) for x in (q, k, v)), [0, 3], [0, keys], dtype=dtype, return_lse=True
    )
    out, lse = dpnp.asnumpy(out).view(DTYPES[dtype]).astype(np.float64), dpnp.asnumpy(lse)
    q, k, v = (x[:, 0].astype(np.float64) for x in (q, k, v))
    score = q @ k.T / 8
    top = score.max(axis=1, keepdims=True)
    p = np.exp(score - top)
    total = p.sum(axis=1, keepdims=True)
    want, want_lse = p @ v / total, (top + np.log(total))[:, 0]
    return np.abs(out[:, 0] / want - 1).max(), np.abs(lse[0] / want_lse - 1).max()


@pytest.mark.parametrize("kernel", ["portable"], indirect=True)
@pytest.mark.parametrize(
    ("keys", "values", "scores"),
    [
        *itertools.product([10_000, 100_000], [0.1, "noise"], ["equal", "random"]),
        (1_000_000, 0.1, "equal"),
        (1_000_000, "noise", "random"),
    ],
)
def test_error_does_not_grow_with_length(kernel, keys, values, scores):
    """PyTorch 2.13's scaled_dot_product_attention on the CPU: equal scores 1.1e-6, 2.5e-6, 1.4e-5;
    random scores and noise 3.8e-7, 1.3e-6, 4.4e-6."""
    torch = {
        "equal": {10_000: 1.1e-6, 100_000: 2.5e-6, 1_000_000: 1.4e-5},
        "random": {10_000: 3.8e-7, 100_000: 1.3e-6, 1_000_000: 4.4e-6},
    }
    out, lse = relative_errors("float32", keys, values, scores)
    assert out <= torch[scores][keys]
    assert lse < 5e-7


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
def test_sums_of_a_long_row(kernel):
    """A value that a chain of additions rounds to 1 from the 65,536th key on."""
    out, lse = relative_errors("float16", 131_072, 1 + 3 / 1024, "equal")
    assert out <= 2.0**-11
    assert lse < 5e-7


@each
def test_reference_that_moves_between_spans(kernel, dtype):
    """Scores that rise over thousands of keys: sums so far are scaled again and again."""
    batch = make_batch([20], [9000], heads=(2, 1), dtype=dtype, causal=True)
    batch.k[:] *= np.linspace(0, 8, 9000)[:, None, None].astype(batch.k.dtype)
    batch.check(*run(batch))


@each
def test_spans_of_other_rows(kernel, dtype):
    """Windows around the boundary of two spans: each row has the bits it has alone."""
    whole = make_batch([100], [4140], heads=(1, 1), dtype=dtype, window=(2100, 0))
    out, lse = run(whole)
    whole.check(out, lse)
    for row in (0, 7, 37, 55, 56, 99):
        keys = 4140 - 99 + row
        alone = make_batch([1], [keys], heads=(1, 1), dtype=dtype, window=(2100, 0))
        alone.q[:], alone.k, alone.v = whole.q[row], whole.k[:keys], whole.v[:keys]
        got, got_lse = run(alone)
        assert_same_bits(got[0], out[row])
        assert_same_bits(got_lse[:, 0], lse[:, row])


@pytest.mark.parametrize(("kernel", "dtype"), EACH[:3], indirect=["kernel"])
@pytest.mark.parametrize("mask", POISONED)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_at_a_key(kernel, dtype, mask, poison):
    """No bit of a row that does not see it, whatever the tile; all schedules agree on every bit."""
    clean, dirty, sees = poisoned_batches(dtype, mask, poison)
    want, want_lse = run(clean)
    first = None
    for scheduler, pack_gqa in itertools.product(exactile.SCHEDULERS, (False, True)):
        out, lse = run(dirty, scheduler=scheduler, pack_gqa=pack_gqa)
        assert_same_bits(out[~sees], want[~sees])
        assert_same_bits(lse[:, ~sees], want_lse[:, ~sees])
        assert not np.isfinite(out[sees].astype(np.float32)).any()
        first = first or (out, lse)
        assert_same_bits(out, first[0])
        assert_same_bits(lse, first[1])


@pytest.mark.parametrize(("kernel", "dtype"), EACH[3:], indirect=["kernel"])
@pytest.mark.parametrize("mask", [{"causal": True}, {"window": (20, 3)}, {"window": (9, -1)}])
@pytest.mark.parametrize("name", ["k", "v"])
def test_how_far_poison_reaches(kernel, dtype, mask, name):
    """XMX: in K no row that does not see it. In V no row further from those that see it than a
    sub-group's tokens and a key block; there out alone."""
    lengths = [300, 40]
    clean, dirty = (make_batch(lengths, heads=(6, 2), dtype=dtype, **mask) for _ in range(2))
    left, right = dirty.window
    right = 0 if dirty.causal else right
    sees, reached = (np.zeros(sum(lengths), bool) for _ in range(2))
    for key, value in {0: np.nan, 5: np.inf, 150: -np.inf, 163: np.nan, 299: np.inf}.items():
        if name == "v" or np.isnan(value):
            getattr(dirty, name)[key] = value
            distance = key - np.arange(300)
            for rows, more in ((sees, 0), (reached, 0 if name == "k" else 16 + 64)):
                rows[:300] |= ((left < 0) | (distance >= -left - more)) & (
                    (right < 0) | (distance <= right + more)
                )
    assert 0 < sees.sum() <= reached.sum() < len(sees)
    for pack_gqa in (False, True):
        (want, want_lse), (out, lse) = (run(x, pack_gqa=pack_gqa) for x in (clean, dirty))
        assert (
            exactile.plan(
                [0, 1], num_heads_q=6, num_heads_kv=2, head_dim=64, dtype=dtype, backend="sycl"
            ).block_n
            == 64
        )
        assert_same_bits(out[~reached], want[~reached])
        assert_same_bits(lse[:, ~sees], want_lse[:, ~sees])
        assert not np.isfinite(out[sees].astype(np.float32)).any()


@each_of_wide_range
def test_scores_that_overflow(kernel, dtype):
    """A score of +Inf makes its row NaN, one of -Inf has no weight; no other row is touched."""
    batch = make_batch([5], heads=(1, 1), dtype=dtype, causal=True)
    clean = run(batch)[0]
    batch.k[2] = 3e38
    batch.q[2:] = 0
    batch.q[2, 0, :2] = 1e30  # +Inf for row 2
    batch.q[3, 0, :2] = -1e30  # -Inf for row 3
    out, lse = run(batch)
    assert_same_bits(out[:2], clean[:2])
    assert np.isnan(out[2].astype(np.float32)).all()
    assert np.isnan(lse[0, 2])
    assert np.isfinite(out[3:].astype(np.float32)).all()
