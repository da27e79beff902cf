"""What must not change a bit: schedule, threads, the rest of the batch, memory around it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import exactile
from cases import (
    DTYPES,
    Batch,
    assert_same_bits,
    check_any_place_of_a_batch,
    check_poison_stays,
    make_batch,
)

LENS_Q = [300, 0, 31, 1, 129, 64]
LENS_K = [300, 9, 90, 1, 100, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "mask", [{}, {"causal": True}, {"window": (50, 20)}], ids=["full", "causal", "window"]
)
def test_schedule(dtype, mask):
    batch = make_batch(LENS_Q, LENS_K, dtype=dtype, head_dim=96, **mask)
    first = batch.run(scheduler="Individual", workers=1)
    for scheduler, pack_gqa, workers in itertools.product(
        exactile.SCHEDULERS, (False, True), (1, 3)
    ):
        orders = (None,) if scheduler == "Individual" else (None, "natural", "head_major")
        for order in orders:
            again = batch.run(scheduler=scheduler, pack_gqa=pack_gqa, order=order, workers=workers)
            for got, want in zip(again, first, strict=True):
                assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_alone_and_in_any_place_of_a_batch(dtype):
    check_any_place_of_a_batch(Batch.run, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_stays_in_its_sequence(dtype, poison, scheduler):
    check_poison_stays(Batch.run, dtype, poison, scheduler)


@pytest.mark.parametrize("dtype", DTYPES)
def test_poison_outside_the_sequences(dtype):
    """Rows before the first and after the last sequence of a larger buffer."""
    clean = make_batch([33, 65], dtype=dtype)
    padded = make_batch([33, 65], dtype=dtype)
    for name in "qkv":
        x = getattr(clean, name)
        buffer = np.full((x.shape[0] + 256, *x.shape[1:]), np.nan, x.dtype)
        buffer[128:-128] = x
        setattr(padded, name, buffer[128:-128])
    out = np.full((98 + 256, 4, 64), 7, DTYPES[dtype])
    padded.run(out=out[128:-128])
    assert_same_bits(out[128:-128], clean.run()[0])
    assert (out[:128] == 7).all()
    assert (out[-128:] == 7).all()


def test_the_same_call_twice_on_changed_data():
    """Copies of K and V that a worker keeps do not outlive the call."""
    batch = make_batch([260, 30], dtype="bfloat16")
    plan = exactile.plan(
        batch.cu_q, num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bfloat16", workers=1
    )
    before = plan.run(batch.q, batch.k, batch.v)
    batch.k[:] = -batch.k
    batch.v[:] = 2 * batch.v
    after, lse = plan.run(batch.q, batch.k, batch.v, return_lse=True)
    assert (before != after).any()
    batch.check(after, lse)
