"""Where `out` may lie: apart from q, k and v, or exactly in the place of q."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exactile
from cases import DTYPES, assert_same_bits, make_batch

REFUSED = "apart from q, k and v in memory, or exactly q, got one that overlaps"


def plan_of(tokens, heads_q, heads_kv, dtype="float32"):
    return exactile.plan(
        seqlens_q=[tokens], num_heads_q=heads_q, num_heads_kv=heads_kv, head_dim=64, dtype=dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pack_gqa", [False, True])
def test_in_place(dtype, pack_gqa, scheduler):
    """More than the output that is written past the caches, and rows after each sequence's end."""
    lengths = [700, 1, 0, 129, 2500]
    batch = make_batch(lengths, heads=(16, 4), dtype=dtype, causal=True)
    want, want_lse = batch.run(scheduler=scheduler, pack_gqa=pack_gqa, workers=2)
    out, lse = batch.run(out=batch.q, scheduler=scheduler, pack_gqa=pack_gqa, workers=2)
    assert out is batch.q
    assert_same_bits(out, want)
    assert_same_bits(lse, want_lse)


def test_in_place_of_a_slice():
    packed = np.random.default_rng(0).standard_normal((300, 8, 64), np.float32)
    q, k, v = packed[:, :4], packed[:, 4:6], packed[:, 6:]
    plan = plan_of(300, 4, 2)
    want = plan.run(q, k, v)
    untouched = packed[:, 4:].copy()
    plan.run(q, k, v, out=packed[:, :4])
    assert_same_bits(packed[:, :4], want)
    assert_same_bits(packed[:, 4:], untouched)


def shifted():
    memory = np.zeros((21, 2, 64), np.float32)
    return memory[:-1], memory[1:]


def refused_outputs():
    k = np.zeros((20, 2, 64), np.float32)
    q = np.zeros((20, 2, 64), np.float32)
    before, after = shifted()
    heads = np.zeros((20, 3, 64), np.float32)
    wide = np.zeros((20, 2, 96), np.float32)
    return {
        "k": (q, k, k, "k"),
        "k reversed": (q, k, k[::-1], "k"),
        "q a row later": (before, k, after, "q"),
        "q a row before": (after, k, before, "q"),
        "q reversed": (q, k, q[::-1], "q"),
        "q with its heads reversed": (q, k, q[:, ::-1], "q"),
        "q a head later": (heads[:, :2], k, heads[:, 1:], "q"),
        "half of q's columns": (wide[..., :64], k, wide[..., 32:], "q"),
        "other strides": (q, k, q.reshape(-1)[:2560].reshape(2, 20, 64).transpose(1, 0, 2), "q"),
    }


@pytest.mark.parametrize("case", refused_outputs())
def test_overlapping_outputs(case):
    q, k, out, name = refused_outputs()[case]
    before = out.copy()
    with pytest.raises(ValueError, match=f"{REFUSED} {name}"):
        plan_of(20, 2, 2).run(q, k, np.zeros_like(k), out=out)
    assert_same_bits(out, before)


def test_v_counts_too():
    q, k, v = (np.zeros((20, 2, 64), np.float32) for _ in range(3))
    with pytest.raises(ValueError, match=f"{REFUSED} v"):
        plan_of(20, 2, 2).run(q, k, v, out=v)


def test_layouts_that_interleave():
    """Slices of one array, whose extents meet and whose elements do not."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    by_token = draw(50, 4, 3, 64)  # (tokens, heads, q k v, head_dim)
    by_kind = draw(50, 4, 4, 64)  # (tokens, q k v out, heads, head_dim)
    by_head = draw(4, 4, 50, 64)  # (heads, q k v out, tokens, head_dim)
    by_column = draw(50, 4, 256)  # (tokens, heads, q k v out)
    other = draw(50, 12, 64)
    layouts = [
        ([by_token[:, :, i] for i in range(3)], other[:, 4:8]),
        ([by_kind[:, i] for i in range(3)], by_kind[:, 3]),
        ([by_head[:, i].transpose(1, 0, 2) for i in range(3)], by_head[:, 3].transpose(1, 0, 2)),
        ([by_column[..., 64 * i : 64 * i + 64] for i in range(3)], by_column[..., 192:]),
    ]
    plan = plan_of(50, 4, 4)
    for arrays, out in layouts:
        want = plan.run(*(np.ascontiguousarray(x) for x in arrays))
        assert_same_bits(np.ascontiguousarray(plan.run(*arrays, out=out)), want)


@pytest.mark.parametrize("strides", [(0, 256), (512, 0), (256, 256), (512, 128), (0, 0)])
def test_outputs_that_overlap_themselves(strides):
    q = np.zeros((20, 2, 64), np.float32)
    out = np.lib.stride_tricks.as_strided(np.zeros_like(q), q.shape, (*strides, 4), writeable=True)
    with pytest.raises(ValueError, match="strides of out that lead to every element once"):
        plan_of(20, 2, 2).run(q, q, q, out=out)


def test_one_token_or_one_head_has_any_stride():
    x = np.ones((1, 1, 64), np.float32)
    out = np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), x.shape, (0, 0, 4))
    assert (plan_of(1, 1, 1).run(x, x, x, out=out) == 1).all()


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_against_numpy(data):
    """Never missed; for arrays that step alike, never claimed wrongly."""
    memory = np.zeros(64 * 64, np.float32)
    draw = data.draw

    def view(shape, strides):
        reach = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
        low, high = sum(min(0, r) for r in reach), sum(max(0, r) for r in reach) + 64
        begin = draw(st.integers(-low, memory.size - high), label="begin")
        bytes_each = [4 * s for s in (*strides, 1)]
        return np.lib.stride_tricks.as_strided(memory[begin:], (*shape, 64), bytes_each)

    tokens, heads = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)), label="shape")
    step = st.sampled_from([64, 96, 128, 192, 256, 384, -64, -128, -256])
    strides = draw(st.tuples(step, step), label="strides of out")
    alike = draw(st.booleans(), label="alike")
    out = view((tokens, heads), strides)
    k = view((tokens, heads), strides if alike else draw(st.tuples(step, step)))
    distinct = len(np.unique(addresses(out))) == out.size
    q, v = np.zeros((2, tokens, heads, 64), np.float32)
    try:
        plan_of(tokens, heads, heads).run(q, k, v, out=out)
        refused = ""
    except ValueError as error:
        refused = str(error)
    if "every element once" in refused:
        return
    assert distinct
    shares = np.shares_memory(out, k)
    assert bool(refused) >= shares
    if alike:
        assert bool(refused) == shares


def addresses(x):
    index = np.indices(x.shape).reshape(x.ndim, -1)
    return np.dot(np.array(x.strides), index)
