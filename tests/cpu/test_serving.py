"""Serving attention on the CPU: each feature and each pair against float64, and what is bitwise."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exactile
from abilities import require
from cases import (
    DTYPES,
    LENS_K,
    LENS_Q,
    POISONED,
    STRIDED,
    assert_same_bits,
    make_batch,
    poisoned_batches,
)
from exactile import _core
from serving import (
    FEATURES,
    KIND_OF,
    PAGE_LAYOUTS,
    PAGE_SIZES,
    assert_same_results,
    check_rows_without_keys_have_their_sink,
    counted,
    in_pages,
    lengths,
    serve,
    some_sinks,
    some_slopes,
    tokens,
    with_features,
    with_padding,
    with_scores,
    with_used_lengths,
)

PAIRS = [
    pair for pair in itertools.combinations(KIND_OF, 2) if KIND_OF[pair[0]] != KIND_OF[pair[1]]
]
SUPPORT = [row[1:] for row in _core.support() if row[0] == "cpu"]


def check_every_way(batch, **options):
    """Against float64, and that no policy, packing of heads or thread count changes a bit."""
    results = serve(batch, workers=1, **options)
    batch.check(*results)
    for scheduler, pack_gqa, workers in itertools.product(
        exactile.SCHEDULERS, (False, True), (1, 3)
    ):
        again = serve(batch, scheduler=scheduler, pack_gqa=pack_gqa, workers=workers, **options)
        assert_same_results(counted(batch, again), counted(batch, results))


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("feature", KIND_OF)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (5, 1)])
def test_each_feature(feature, dtype, heads):
    batch = make_batch(LENS_Q, LENS_K, heads=heads, dtype=dtype)
    check_every_way(with_features(batch, [feature], seed=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_each_pair_of_features(pair, dtype):
    batch = make_batch(LENS_Q, LENS_K, dtype=dtype)
    check_every_way(with_features(batch, pair))


@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), SUPPORT)
def test_all_at_once_for_every_supported_row(dtype, head_dim, head_dim_v):
    batch = make_batch(LENS_Q, LENS_K, dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v)
    names = ["window", "wide softcap", "sinks", "alibi of sequences", "seqused_q", "seqused_k"]
    check_every_way(with_features(batch, [*names, "padding", "pages of 16, side by side"]))


LENGTH = st.sampled_from([0, 1, 2, 31, 63, 64, 65, 127, 128, 129, 200])


@given(
    shapes=st.lists(st.tuples(LENGTH, LENGTH), max_size=5),
    features=st.tuples(*(st.sampled_from([None, *names]) for names in FEATURES.values())),
    page_size=st.integers(1, 300),
    layout=st.sampled_from(PAGE_LAYOUTS),
    dtype=st.sampled_from(list(DTYPES)),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_ragged(shapes, features, page_size, layout, dtype, heads, seed):
    lens_q, lens_k = zip(*shapes, strict=True) if shapes else ((), ())
    batch = make_batch(lens_q, lens_k, heads=heads, dtype=dtype, seed=seed)
    *features, pages = features
    batch = with_features(batch, features, seed)
    whole = serve(batch)
    batch.check(*whole)
    if pages:
        paged = in_pages(batch, page_size, layout, seed=seed)
        assert_same_results(counted(paged, serve(paged)), counted(batch, whole))


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_variants_that_do_nothing(dtype):
    """Softcap 0, sinks of -inf and slopes of 0 give what none of them gives."""
    batch = make_batch(LENS_Q, LENS_K, dtype=dtype, causal=True)
    want = serve(batch)
    assert_same_results(serve(with_scores(batch, softcap=0.0)), want)
    none = with_scores(batch, sinks=[-np.inf] * 4, slopes=[0.0] * 4)
    none.check(*serve(none))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_see_no_key_have_their_sink(dtype, scheduler):
    check_rows_without_keys_have_their_sink(partial(serve, scheduler=scheduler), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks_are_a_part_of_the_sum(dtype):
    """As merging with a part whose value is 0 and whose lse is the sink."""
    batch = make_batch([40], dtype=dtype)
    out, lse = serve(batch)
    sinks = some_sinks(4, seed=3)
    sunk, sunk_lse = serve(with_scores(batch, sinks=sinks))
    want = np.logaddexp(lse, sinks[:, None])
    np.testing.assert_allclose(sunk_lse, want, rtol=1e-5, atol=1e-5)
    share = np.exp(lse - want).T[..., None]
    np.testing.assert_allclose(
        sunk.astype(np.float32), out.astype(np.float32) * share, rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [1e-3, 0.7, 30.0, 1e4])
def test_softcap_of_large_scores(dtype, softcap):
    batch = make_batch([130, 7], dtype=dtype, causal=True)
    batch.q[:] *= batch.q.dtype.type(12)
    batch = with_scores(batch, softcap=softcap)
    batch.check(*serve(batch))


@pytest.mark.parametrize("dtype", DTYPES)
def test_alibi_over_many_keys(dtype):
    """Biases of thousands: only the nearest keys count, on both sides of a row."""
    for mask in {}, {"causal": True}, {"window": (900, 40)}:
        batch = make_batch([70, 5], [1300, 900], heads=(4, 1), dtype=dtype, **mask)
        batch = with_scores(batch, slopes=[8.0, 0.5, 2.0**-8, 0.0])
        batch.check(*serve(batch))


@pytest.mark.parametrize("scale", [0.02, 1.0])
@pytest.mark.parametrize("features", [["wide softcap"], ["alibi"], ["sinks"], ["softcap", "alibi"]])
def test_variants_know_the_softmax_scale(scale, features):
    batch = with_features(make_batch([65, 3], [70, 129]), features)
    batch.serving["softmax_scale"] = scale
    batch.check(*serve(batch))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks_that_are_no_numbers(dtype):
    """NaN stays in its head; beside an infinite sink nothing is left of the values."""
    batch = make_batch([40, 3], [40, 0], dtype=dtype, causal=True)
    want, want_lse = serve(batch)
    sinks = np.array([np.nan, -np.inf, np.inf, -np.inf], np.float32)
    out, lse = serve(with_scores(batch, sinks=sinks))
    assert_same_bits(out[:, 1::2], want[:, 1::2])
    assert_same_bits(lse[1::2], want_lse[1::2])
    assert np.isnan(out[:40, 0].astype(np.float32)).all()
    assert np.isnan(lse[0]).all()
    assert (out[:, 2] == 0).all()
    assert (lse[2] == np.inf).all()


# --- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", PAGE_LAYOUTS)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"window": (33, 70)}], ids=str)
def test_pages_change_no_bit(mask, page_size, layout, dtype):
    batch = make_batch([5, 0, 130, 64, 1], [700, 4, 70, 257, 128], dtype=dtype, **mask)
    want = serve(batch)
    for poison, keep_cu_k in ((np.nan, False), (np.inf, True)):
        paged = in_pages(batch, page_size, layout, keep_cu_k=keep_cu_k, poison=poison)
        for pack_gqa in False, True:
            assert_same_results(serve(paged, pack_gqa=pack_gqa), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_of_several_sequences(dtype):
    """A prefix that sequences share lies in the same pages."""
    whole = make_batch([9, 33, 1], [64 + 20, 64 + 50, 64], dtype=dtype, causal=True)
    for b in 1, 2:
        for x in whole.k, whole.v:
            x[whole.cu_k[b] : whole.cu_k[b] + 64] = x[:64]
    paged = in_pages(whole, 16)
    for x in paged.k, paged.v:
        x[paged.serving["block_table"][1:, :4]] = np.nan
    paged.serving["block_table"][1:, :4] = paged.serving["block_table"][0, :4]
    assert_same_results(serve(paged), serve(whole))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", POISONED)
@pytest.mark.parametrize("page_size", [1, 16, 100])
def test_poison_at_a_key_reaches_the_rows_that_see_it(dtype, mask, page_size):
    clean, dirty, sees = poisoned_batches(dtype, mask, np.nan)
    for change in {}, {"softcap": 2.0}, {"sinks": some_sinks(6)}, {"slopes": some_slopes(6)}:
        want, want_lse = serve(in_pages(with_scores(clean, **change), page_size))
        out, lse = serve(in_pages(with_scores(dirty, **change), page_size))
        assert_same_bits(out[~sees], want[~sees])
        assert_same_bits(lse[:, ~sees], want_lse[:, ~sees])
        assert not np.isfinite(out[sees].astype(np.float32)).any()


def test_one_head_for_all_and_one_page_for_all():
    """Strides of 0: keys of all kv heads are the same memory, and so are all pages."""
    batch = make_batch([9, 20], [32, 32], heads=(4, 2))
    batch.k[:, 1], batch.v[:, 1] = batch.k[:, 0], batch.v[:, 0]
    for x in batch.k, batch.v:
        x[:] = np.tile(x[:16], (4, 1, 1))
    want = serve(batch)
    paged = in_pages(batch, 16)
    page = paged.serving["block_table"][0, 0]
    shape = paged.k.shape
    for name in "kv":
        x = getattr(paged, name)[page, :, :1]
        setattr(paged, name, np.broadcast_to(x, shape))
    assert_same_results(serve(paged), want)


@pytest.mark.parametrize("stride", ["rows that fall", "one row for all", "rows far apart"])
def test_rows_of_the_table_lie_anywhere(stride):
    batch = make_batch([9, 20, 3], [32, 32, 32])
    for x in batch.k, batch.v:
        x[:] = np.tile(x[:32], (3, 1, 1))
    want = serve(batch)
    paged = in_pages(batch, 16)
    table = paged.serving["block_table"].copy()
    paged.serving["block_table"] = {
        "rows that fall": np.ascontiguousarray(table[::-1])[::-1],
        "one row for all": np.broadcast_to(table[1], table.shape),
        "rows far apart": np.repeat(table, 7, axis=0)[::7],
    }[stride]
    assert_same_results(serve(paged), want)


def test_pages_beyond_31_bits():
    """The second page lies 2^31 elements behind the first; the memory is never touched."""
    batch = make_batch([5], [30], dtype="float16")
    paged = in_pages(batch, 16)
    step = 1 << 31
    table = np.array([[1, 0]], np.int32)
    for name in "kv":
        memory = np.zeros(step + 16 * 2 * 64, np.float16)
        far = np.lib.stride_tricks.as_strided(
            memory, (2, 16, 2, 64), (2 * step, 2 * 2 * 64, 2 * 64, 2), writeable=True
        )
        far[1], far[0, :14] = getattr(batch, name)[:16], getattr(batch, name)[16:]
        setattr(paged, name, far)
    paged.serving["block_table"] = table
    assert_same_results(serve(paged), serve(batch))


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_beside_prefill(dtype):
    """One row, a few rows and a whole prompt, with thousands of keys and with none."""
    lens_q, lens_k = [1, 1, 4, 200, 1, 1, 0], [3000, 1, 1025, 200, 64, 0, 500]
    batch = make_batch(lens_q, lens_k, heads=(8, 1), dtype=dtype, causal=True)
    check_every_way(in_pages(with_used_lengths(batch, "q"), 16, "side by side"))


# --- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sides", ["q", "k", "qk"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_room_changes_no_bit(sides, poison, dtype, scheduler):
    batch = make_batch(LENS_Q, LENS_K, dtype=dtype, causal=True)
    want = serve(batch)
    wide = with_padding(with_used_lengths(batch, sides, poison=poison), poison=poison)
    assert_same_results(counted(wide, serve(wide, scheduler=scheduler)), want)


def test_padding_without_out():
    """New results have as many rows as q."""
    batch = make_batch(LENS_Q, LENS_K)
    padded = with_padding(batch)
    out, lse = padded.run()
    assert out.shape == padded.q.shape
    assert lse.shape == (4, len(padded.q))
    assert_same_results(counted(padded, (out, lse)), serve(batch))


def test_in_place():
    """out = q: padding and rows that do not count keep what they have."""
    batch = make_batch(LENS_Q, LENS_K, causal=True)
    want = serve(batch)
    wide = in_pages(with_padding(with_used_lengths(batch, "qk")), 16)
    rows = tokens(*lengths(wide)[:2])
    left = np.delete(wide.q, rows, axis=0)
    got = wide.run(out=wide.q)
    assert got[0] is wide.q
    assert_same_results(counted(wide, got), want)
    assert_same_bits(np.delete(wide.q, rows, axis=0), left)


def test_nothing_is_used():
    batch = make_batch([5, 70], [9, 40])
    batch.serving["seqused_k"] = np.zeros(2, np.int32)
    out, lse = serve(batch)
    assert (out == 0).all()
    assert np.isneginf(lse).all()
    batch.serving["seqused_q"] = np.zeros(2, np.int32)
    serve(batch)  # looks that no row is written


@pytest.mark.parametrize("scheduler", ["ValidOnlyIndividual", "ValidOnlyPersistent"])
def test_plans_count_what_is_used(scheduler):
    shape = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="float32", causal=True)
    wide = with_used_lengths(make_batch(LENS_Q, LENS_K), "qk")
    got = exactile.plan(
        wide.cu_q, wide.cu_k, **wide.serving, **shape, scheduler=scheduler, workers=2
    )
    want = exactile.plan(
        seqlens_q=LENS_Q, seqlens_k=LENS_K, **shape, scheduler=scheduler, workers=2
    )
    for name in "pairs", "flops", "valid", "launched", "num_records":
        assert getattr(got, name) == getattr(want, name), name


def test_a_plan_takes_many_runs():
    """Pages move, sinks change; lengths and page_size are the plan's."""
    batch = with_used_lengths(make_batch([3, 40], [50, 90], causal=True), "k")
    shape = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="float32", causal=True)
    used = lengths(batch).len_k.astype(np.int32)
    plan = exactile.plan(batch.cu_q, seqused_k=used, page_size=16, **shape)
    for seed in range(3):
        paged = in_pages(with_scores(batch, sinks=some_sinks(4, seed)), 16, seed=seed)
        options = {name: paged.serving[name] for name in ("block_table", "sinks")}
        out, lse = plan.run(paged.q, paged.k, paged.v, return_lse=True, **options)
        paged.check(out, lse)


def test_a_policy_of_ones_own():
    """It walks the tiles of what is used, in pages too."""
    require("c++")
    batch = with_features(make_batch(LENS_Q, LENS_K), ["causal", "sinks", "alibi", "seqused_q"])
    want = counted(batch, serve(batch))
    policy = exactile.Scheduler("Strided", STRIDED, "ValidOnlyPersistent")
    for served in batch, with_used_lengths(batch, "k"), in_pages(batch, 16), in_pages(batch, 3):
        assert_same_results(counted(served, serve(served, scheduler=policy)), want)


def test_torch():
    """Tensors of torch, the options too."""
    require("torch")
    import torch

    batch = make_batch(LENS_Q, LENS_K, dtype="float16", window=(60, 9))
    batch = with_scores(batch, 20.0, some_sinks(4), some_slopes(4))
    batch = in_pages(with_padding(with_used_lengths(batch, "qk")), 16)
    want = serve(batch)
    as_torch = replace(
        batch,
        **{name: torch.from_numpy(getattr(batch, name)) for name in ("q", "k", "v", "cu_q")},
        serving={
            name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x
            for name, x in batch.serving.items()
        },
    )
    out, lse = as_torch.run()
    assert_same_results(counted(batch, (out.numpy(), lse.numpy())), counted(batch, want))
