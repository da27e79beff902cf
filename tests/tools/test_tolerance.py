"""The tolerance: a run in its dtype passes, one that forgets or bends a feature does not."""

from __future__ import annotations

import numpy as np
import pytest

from cases import DTYPES, LENS_K, LENS_Q, make_batch
from exactile.tools.reference import reference
from exactile.tools.tolerance import compare
from serving import in_pages, some_sinks, some_slopes, with_padding, with_scores, with_used_lengths

WRONG = {
    "no softcap": {"softcap": 0.0},
    "another softcap": {"softcap": 4.4},
    "no sinks": {"sinks": None},
    "sinks of other heads": {"sinks": some_sinks(4)[::-1]},
    "no slopes": {"alibi_slopes": None},
    "slopes of the other sign": {"alibi_slopes": -some_slopes(4)},
    "slopes of other heads": {"alibi_slopes": some_slopes(4)[::-1]},
    "one key less": {"seqused_k": [n - (n == 129) for n in LENS_K]},
    "a mask at another corner": {"window": (69, 3)},
}


def everything(dtype):
    batch = make_batch(LENS_Q, LENS_K, dtype=dtype, window=(70, 3))
    batch = with_scores(batch, 4.0, some_sinks(4), some_slopes(4))
    return in_pages(with_padding(with_used_lengths(batch, "qk")), 16)


def computed(batch, dtype, **changes):
    """What `batch` gives in its dtype, laid out as a run lays it."""
    options = batch.serving | {"window": batch.window} | changes
    out, lse = reference(
        batch.q, batch.k, batch.v, batch.cu_q, batch.cu_k, compute_dtype=dtype, **options
    )
    wide_out = np.full((len(batch.q), *out.shape[1:]), np.nan)
    wide_lse = np.full((len(lse), len(batch.q)), np.nan)
    ends = np.cumsum(batch.serving["seqused_q"])
    for start, end, used in zip(batch.cu_q, ends, batch.serving["seqused_q"], strict=False):
        wide_out[start : start + used] = out[end - used : end]
        wide_lse[:, start : start + used] = lse[:, end - used : end]
    return wide_out, wide_lse


def found(batch, got, dtype):
    return compare(
        *(got, batch.q, batch.k, batch.v, batch.cu_q, batch.cu_k),
        dtype=dtype,
        window=batch.window,
        **batch.serving,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_what_counts_is_judged(dtype):
    batch = everything(dtype)
    verification = found(batch, computed(batch, dtype), dtype)
    assert verification.passed
    assert verification.rows == sum(LENS_Q)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_forgotten_is_seen(wrong, dtype):
    batch = everything(dtype)
    assert not found(batch, computed(batch, dtype, **WRONG[wrong]), dtype).passed


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_was_not_computed_is_seen(dtype):
    batch = everything(dtype)
    out, lse = computed(batch, dtype)
    out[batch.cu_q[2]] = np.nan
    assert not found(batch, (out, lse), dtype).passed


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_tolerate_no_more_than_packed_keys(dtype):
    """The same fraction of what is tolerated, to the last digits."""
    packed = make_batch(LENS_Q, LENS_K, dtype=dtype)
    out, lse = reference(packed.q, packed.k, packed.v, packed.cu_q, packed.cu_k)
    got = out * (1 + 1e-3), lse
    paged = in_pages(packed, 16)
    assert found(paged, got, dtype).of_tolerance == pytest.approx(
        found(packed, got, dtype).of_tolerance, rel=1e-6
    )
