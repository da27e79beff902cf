"""varlen_prefill against float64, over everything that is supported."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exactile
from cases import DTYPES, LENS_K, LENS_Q, MASKS, make_batch
from exactile import _core

SUPPORT = [row[1:] for row in _core.support() if row[0] == "cpu"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), SUPPORT)
def test_every_supported_row_under_every_mask(dtype, head_dim, head_dim_v, mask):
    batch = make_batch(
        LENS_Q, LENS_K, dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v, **MASKS[mask]
    )
    batch.check(*batch.run())


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2), (8, 1), (7, 1), (32, 8)])
@pytest.mark.parametrize("pack_gqa", [False, True])
def test_head_groups(heads, pack_gqa, scheduler):
    batch = make_batch([3, 140, 45], heads=heads, causal=True)
    batch.check(*batch.run(scheduler=scheduler, pack_gqa=pack_gqa))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sequence_with_growing_scores(dtype):
    batch = make_batch([600], heads=(2, 1), head_dim=128, dtype=dtype)
    batch.k[:] *= np.linspace(0.1, 6, 600)[:, None, None].astype(batch.k.dtype)
    batch.check(*batch.run())


@given(
    lengths=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 31, 63, 64, 65, 127, 128, 129, 200]),
            st.sampled_from([0, 1, 3, 63, 64, 65, 127, 128, 130, 256]),
        ),
        max_size=5,
    ),
    window=st.tuples(st.integers(-1, 140), st.integers(-1, 140)),
    causal=st.booleans(),
    dtype=st.sampled_from(list(DTYPES)),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    seed=st.integers(0, 9),
)
@settings(max_examples=120, deadline=None)
def test_ragged(lengths, window, causal, dtype, heads, seed):
    lens_q, lens_k = zip(*lengths, strict=True) if lengths else ((), ())
    batch = make_batch(
        lens_q, lens_k, heads=heads, dtype=dtype, seed=seed, causal=causal, window=window
    )
    batch.check(*batch.run())


def test_batch_of_none():
    batch = make_batch([])
    out, lse = batch.run()
    assert out.shape == (0, 4, 64)
    assert lse.shape == (4, 0)


def test_rows_that_see_no_key_are_written(scheduler):
    batch = make_batch([6, 3], [2, 0], causal=True)
    out = np.full_like(batch.q, np.nan)
    returned, lse = batch.run(out=out, scheduler=scheduler)
    assert returned is out
    assert (out[:4] == 0).all()
    assert (out[6:] == 0).all()
    assert np.isneginf(lse[:, :4]).all()
    assert np.isneginf(lse[:, 6:]).all()
    batch.check(out, lse)


def test_softmax_scale():
    batch = make_batch([40])
    scaled = make_batch([40])
    scaled.q *= 3
    out = exactile.varlen_prefill(batch.q, batch.k, batch.v, batch.cu_q, softmax_scale=3 * 64**-0.5)
    np.testing.assert_allclose(out, scaled.run()[0], rtol=0, atol=1e-5)


def test_strided_inputs_and_output():
    """q, k and v as slices of one projection, out as a slice of a larger array."""
    rng = np.random.default_rng(0)
    packed = rng.standard_normal((150, 8, 64), np.float32)
    batch = make_batch([100, 50])
    batch.q, batch.k, batch.v = packed[:, :4], packed[:, 4:6], packed[:, 6:]
    storage = np.full((150, 6, 80), np.nan, np.float32)
    out, lse = batch.run(out=storage[:, 1:5, 8:72])
    batch.check(out, lse)
    untouched = np.ones(storage.shape, bool)
    untouched[:, 1:5, 8:72] = False
    assert np.isnan(storage[untouched]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_and_negative_strides(dtype):
    source = make_batch([70], head_dim=64, dtype=dtype)
    batch = make_batch([70], head_dim=64, dtype=dtype)
    for name in "qkv":
        x = getattr(source, name)
        wide = np.zeros((70, x.shape[1] * 64 + 1), x.dtype)  # an odd number of elements a token
        rows = np.lib.stride_tricks.as_strided(
            wide, x.shape, (wide.strides[0], 64 * x.itemsize, x.itemsize), writeable=True
        )
        rows[:] = x[::-1]
        setattr(batch, name, rows[::-1])
    for got, want in zip(batch.run(), source.run(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_large_output_is_written_past_the_caches():
    """More than the 8 MiB from which rows are streamed."""
    batch = make_batch([300] * 30, heads=(4, 4), head_dim=64)
    out, lse = batch.run()
    assert out.nbytes > 8 << 20
    batch.check(out, lse)
