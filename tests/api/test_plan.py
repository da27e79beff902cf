"""Plans: golden numbers, counts against brute force, inputs of every kind."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exactile
from abilities import require
from cases import assert_same_bits, make_batch
from exactile import _core
from golden import CUDA_BLOCK_M, GOLDEN, ZIPF, ZIPF_GRID

NORMAL_Q = [1376, 1568, 1888, 224, 992, 1312, 928, 1088]
NORMAL_Q += [1056, 704, 768, 1344, 896, 832, 1024, 864]
NORMAL_K = [1792, 672, 896, 640, 448, 800, 960, 224]
NORMAL_K += [1696, 1344, 1088, 1280, 1248, 928, 1248, 352]
NORMAL_QK = [1376, 1568, 1792, 672, 1888, 224, 896, 640]
NORMAL_QK += [992, 1312, 448, 800, 928, 1088, 960, 224]
NORMAL_GRID = {128: (7_680, 4_416), 192: (5_120, 3_040)}
NORMAL_QK_GRID = {128: (7_680, 4_160), 192: (5_120, 2_912)}


@pytest.mark.parametrize(
    ("lens_q", "lens_k", "grid", "pairs"),
    [
        (ZIPF, None, ZIPF_GRID, 82_437_120),
        (NORMAL_Q, NORMAL_K, NORMAL_GRID, 16_748_544),
        (NORMAL_QK, None, NORMAL_QK_GRID, 19_404_800),
    ],
    ids=["zipf", "normal q and kv", "normal"],
)
@pytest.mark.parametrize("backend", exactile.BACKENDS)
def test_golden_counts(lens_q, lens_k, grid, pairs, backend):
    def plan(scheduler):
        lengths = dict(seqlens_q=lens_q, seqlens_k=lens_k or lens_q)
        return exactile.plan(**lengths, **GOLDEN, scheduler=scheduler, backend=backend)

    individual, valid_only = plan("Individual"), plan("ValidOnlyIndividual")
    persistent = plan("ValidOnlyPersistent")
    assert individual.block_m == (CUDA_BLOCK_M if backend == "cuda" else 128)
    padded, valid = grid[individual.block_m]
    assert individual.launched == padded
    assert individual.valid == valid_only.valid == valid_only.launched == valid
    assert individual.num_empty == padded - valid
    assert valid_only.num_empty == persistent.num_empty == 0
    assert persistent.launched == min(persistent.valid, persistent.workers)
    assert individual.pairs == pairs
    assert individual.flops == 4 * 32 * 128 * pairs
    assert not individual.pack_gqa
    assert not valid_only.pack_gqa


def test_golden_zipf_in_full():
    valid_only = exactile.plan(seqlens_q=ZIPF, **GOLDEN, scheduler="ValidOnlyIndividual")
    assert valid_only.num_records == len(valid_only.records) == 119
    assert valid_only.flops == 1_350_649_774_080
    assert exactile.plan(seqlens_q=ZIPF, **GOLDEN, causal=True).flops == 675_438_395_392
    packed = exactile.plan(seqlens_q=ZIPF, **GOLDEN, pack_gqa=True)
    assert packed.valid == 3_464
    rows = 13_856 * 128 * 2
    assert valid_only.bytes == rows * (32 + 8 + 8 + 32)


def brute_force(len_q, len_k, window):
    """(pairs, rows with a key, keys with a row) of one sequence."""
    i = np.arange(len_q)[:, None] + len_k - len_q
    j = np.arange(len_k)[None]
    seen = np.ones((len_q, len_k), bool)
    if window[0] >= 0:
        seen &= j >= i - window[0]
    if window[1] >= 0:
        seen &= j <= i + window[1]
    return seen.sum(), seen.any(1).sum(), seen.any(0).sum()


@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=4),
    window=st.tuples(st.integers(-1, 12), st.integers(-1, 12)),
    causal=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_work_against_brute_force(lengths, window, causal):
    lens_q, lens_k = ([pair[side] for pair in lengths] for side in (0, 1))
    plan = exactile.plan(
        seqlens_q=lens_q,
        seqlens_k=lens_k,
        num_heads_q=6,
        num_heads_kv=2,
        head_dim=192,
        head_dim_v=128,
        dtype="float16",
        causal=causal,
        window=window,
    )
    effective = (window[0], 0) if causal else window
    assert plan.window == effective
    counts = [brute_force(q, k, effective) for q, k in lengths]
    pairs, rows, keys = (int(sum(c[i] for c in counts)) for i in range(3))
    assert plan.pairs == pairs
    assert plan.flops == 2 * 6 * (192 + 128) * pairs
    written = sum(lens_q) * 6 * 128
    assert plan.bytes == 2 * (rows * 6 * 192 + keys * 2 * (192 + 128) + written)


@pytest.mark.parametrize("order", _core.ORDERS)
def test_orders(order):
    plan = exactile.plan(seqlens_q=ZIPF, **GOLDEN, causal=True, order=order, pack_gqa=False)
    assert plan.order == order
    q_begin, q_end, _, k_len = plan.records.T
    last_key = k_len - q_end + np.minimum(q_begin + plan.block_m, q_end)
    blocks = -(-last_key // plan.block_n)
    natural = exactile.plan(seqlens_q=ZIPF, **GOLDEN, causal=True, order="natural", pack_gqa=False)
    assert sorted(map(tuple, plan.records)) == sorted(map(tuple, natural.records))
    if order == "natural":
        assert (np.diff(q_begin) > 0).all()
    elif order == "longest_first":
        assert (np.diff(blocks) <= 0).all()
    else:
        assert (np.diff(-(-k_len // plan.block_n)) <= 0).all()
        same = np.diff(q_end) == 0
        assert (np.diff(q_begin)[same] < 0).all()
        assert same.sum() == len(same) + 1 - len(ZIPF)  # a sequence's tiles are together


def test_the_planner_chooses_what_it_says():
    few_long = exactile.plan(seqlens_q=[4096], **GOLDEN)
    assert (few_long.scheduler, few_long.order) == ("ValidOnlyPersistent", "head_major")
    many_short = exactile.plan(seqlens_q=[34] * 512, **GOLDEN)
    assert (many_short.scheduler, many_short.order) == ("ValidOnlyPersistent", "longest_first")
    on_a_gpu = exactile.plan(seqlens_q=[34] * 512, **GOLDEN, backend="cuda")
    assert (on_a_gpu.scheduler, on_a_gpu.order) == ("ValidOnlyPersistent", "sequence_major")
    assert few_long.pack_gqa
    one_head_each = GOLDEN | {"num_heads_kv": 32}
    assert not exactile.plan(seqlens_q=[4096], **one_head_each).pack_gqa


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.int64, "torch", "uint8", "strided"])
def test_lengths_of_every_kind(kind):
    lengths = [3, 0, 7]
    cu = np.array([0, 3, 3, 10])
    if kind == "torch":
        require("torch")
        import torch

        given_cu, given_lengths = torch.tensor(cu), torch.tensor(lengths)
    elif kind == "strided":
        given_cu, given_lengths = np.repeat(cu, 2)[::2], np.repeat(lengths, 2)[::2]
    elif isinstance(kind, str):
        given_cu, given_lengths = cu.astype(kind), np.array(lengths, kind)
    elif kind is np.int64:
        given_cu, given_lengths = cu.astype(np.int64), np.array(lengths, np.int64)
    else:
        given_cu, given_lengths = kind(cu.tolist()), kind(lengths)
    for plan in (
        exactile.plan(given_cu, **GOLDEN),
        exactile.plan(seqlens_q=given_lengths, **GOLDEN),
        exactile.plan(given_cu, seqlens_k=given_lengths, **GOLDEN),
    ):
        assert plan.seqlens.q.tolist() == plan.seqlens.k.tolist() == lengths


def test_summary_and_repr():
    plan = exactile.plan(seqlens_q=ZIPF, **GOLDEN, scheduler="Individual")
    text = plan.summary()
    for part in ("16 sequences", "32/8 heads", "Individual", "32,768", "3,808", "28,960"):
        assert part in text
    assert "32768 work-groups for 3808 tiles" in repr(plan)


def test_a_plan_for_a_gpu_needs_none():
    plan = exactile.plan(seqlens_q=ZIPF, **GOLDEN, backend="cuda", workers=132)
    assert plan.launched == 132
    x = np.zeros((13856, 32, 128), np.uint16)
    with pytest.raises(
        ValueError, match="arrays in CUDA memory for the cuda backend, got them on CPU"
    ):
        plan.run(x, x[:, :8], x[:, :8])
    plan = exactile.plan(seqlens_q=ZIPF, **GOLDEN, backend="sycl")
    with pytest.raises(ValueError, match=r"in SYCL memory .* dpnp.asarray"):
        plan.run(x, x[:, :8], x[:, :8])


def test_plan_time_grows_linearly_in_what_it_does():
    """Not a timing: the number of records is what is written, and 2^20 tokens plan at all."""
    lengths = np.full(8192, 128, np.int32)
    plan = exactile.plan(seqlens_q=lengths, **GOLDEN, pack_gqa=False)
    assert plan.num_records == 8192
    assert plan.planning_us > 0


@pytest.mark.parametrize("pack_gqa", [False, True])
def test_packed_tiles_hold_every_row_once(pack_gqa):
    rng = np.random.default_rng(0)
    lens_q = rng.choice([0, 1, 2, 7, 33, 34, 64, 90, 500], 400)
    lens_k = np.where(rng.random(400) < 0.5, lens_q, rng.choice([0, 1, 20, 60, 700], 400))
    plan = exactile.plan(
        seqlens_q=lens_q, seqlens_k=lens_k, **GOLDEN, backend="cuda", pack_gqa=pack_gqa,
        pack_sequences=True,
    )  # fmt: skip
    cu_q, cu_k = (np.concatenate([[0], np.cumsum(lens)]) for lens in (lens_q, lens_k))
    sequence_of = np.repeat(np.arange(400), lens_q)
    seen = np.zeros(cu_q[-1], int)
    packed = 0
    for q_begin, q_end, k_begin, k_len in plan.records.tolist():
        if q_end >= 0:
            b = sequence_of[q_begin]
            assert (q_end, k_begin, k_len) == (cu_q[b + 1], cu_k[b], lens_k[b])
            seen[q_begin : min(q_begin + plan.tile_tokens, q_end)] += 1
            continue
        tokens, keys = k_len >> 20, k_len & 0xFFFFF
        rows = sequence_of[q_begin : q_begin + tokens]
        assert rows[0] == ~q_end < rows[-1]
        assert (k_begin, keys) == (cu_k[rows[0]], cu_k[rows[-1] + 1] - cu_k[rows[0]])
        assert tokens <= plan.tile_tokens
        seen[q_begin : q_begin + tokens] += 1
        packed += 1
    assert (seen == 1).all()
    assert packed > 20
    blocks = [-(-(k & 0xFFFFF if q < 0 else k) // plan.block_n) for _, q, _, k in plan.records]
    assert blocks == sorted(blocks, reverse=True)


def test_the_planner_packs_short_sequences_alone(monkeypatch):
    monkeypatch.setenv("EXACTILE_CUDA_FAMILY", "sm90")
    short = exactile.plan(seqlens_q=[34] * 4096, **GOLDEN, backend="cuda")
    assert short.pack_sequences
    assert short.pack_gqa
    assert short.valid == 34 * 4096 // 32 * 8
    assert "short sequences packed" in short.summary()
    assert not exactile.plan(seqlens_q=ZIPF, **GOLDEN, backend="cuda").pack_sequences
    assert not exactile.plan(seqlens_q=[34] * 4096, **GOLDEN).pack_sequences
    off = exactile.plan(seqlens_q=[34] * 4096, **GOLDEN, backend="cuda", pack_sequences=False)
    assert not off.pack_sequences
    for options in dict(backend="cpu"), dict(backend="cuda", scheduler="Individual"):
        with pytest.raises(ValueError, match="for pack_sequences=True, got"):
            exactile.plan(seqlens_q=[34], **GOLDEN, **options, pack_sequences=True)


def test_the_module_has_another_name_than_the_function():
    assert isinstance(exactile.plan, types.FunctionType)
    assert "exactile.plan" not in sys.modules
    assert exactile.plan.__module__ == "exactile.planning"


def test_plans_are_read_only():
    plan = exactile.plan(seqlens_q=ZIPF, **GOLDEN)
    for name in (*exactile.Plan.__annotations__, "seqlens", "records", "num_empty", "more"):
        before = getattr(plan, name, None)
        with pytest.raises(AttributeError, match="read-only"):
            setattr(plan, name, 1)
        with pytest.raises(AttributeError, match="read-only"):
            delattr(plan, name)
        assert np.array_equal(getattr(plan, name, None), before)
    for view in plan.records, plan._core.cu_seqlens_q, plan._core.cu_seqlens_k:
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


MINE = """
#include <exactile/scheduler.hpp>
struct Mine : exactile::ValidOnlyIndividual { using ValidOnlyIndividual::ValidOnlyIndividual; };
"""
OPTIONS = {
    "default": {},
    "chosen": dict(scheduler="ValidOnlyIndividual", order="natural", window=(5, 3), workers=3),
    "padded": dict(scheduler="Individual", causal=True),
    "cuda": dict(backend="cuda", pack_sequences=True, workers=132),
    "sycl": dict(backend="sycl"),
    "own": dict(backend="cuda", scheduler=exactile.Scheduler("Mine", source=MINE)),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_and_pickles(options):
    lengths = np.array([34, 0, 7, 300, 34])
    plan = exactile.plan(seqlens_q=lengths, **GOLDEN, **OPTIONS[options])
    for got in copy.copy(plan), copy.deepcopy(plan), pickle.loads(pickle.dumps(plan)):
        for name in exactile.Plan.__annotations__:
            if name != "planning_us":
                assert getattr(got, name) == getattr(plan, name), name
        assert np.array_equal(got.records, plan.records)
        assert np.array_equal(got.seqlens, plan.seqlens)
        assert got._core is not plan._core
        assert got.summary() == plan.summary()


def test_a_copy_runs_and_the_callers_lengths_may_change():
    batch = make_batch([30, 12])
    want = batch.run()[0]
    shape = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="float32")
    plan = exactile.plan(batch.cu_q, **shape)
    batch.cu_q[1] = 5
    for each in plan, copy.deepcopy(plan):
        assert_same_bits(each.run(batch.q, batch.k, batch.v), want)
    batch.cu_q[1] = 30
    assert plan.seqlens.q.tolist() == [30, 12]


def test_a_copy_is_planned_for_the_threads_there_are():
    plan = exactile.plan(seqlens_q=[4000], **GOLDEN)
    before = exactile.get_num_threads()
    try:
        exactile.set_num_threads(before + 1)
        assert copy.copy(plan).workers == before + 1
    finally:
        exactile.set_num_threads(None)


@pytest.mark.parametrize("order", _core.ORDERS)
def test_lengths_that_change_under_the_planner(order):
    """Planned from a copy: what comes out is a plan of lengths that were checked, or an error."""
    low = np.arange(0, 64 * 2001, 64, dtype=np.int32)
    high = low.copy()
    high[1:-1] += 60000  # within a sequence more: more tiles, and at its end a decrease
    cu = low.copy()
    stop = threading.Event()

    def change():
        while not stop.is_set():
            cu[:] = high
            cu[:] = low

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            try:
                plan = exactile.plan(cu, **GOLDEN, order=order, scheduler="ValidOnlyIndividual")
            except ValueError:
                continue
            lengths = plan.seqlens.q
            assert (lengths >= 0).all()
            assert plan.num_records == -(-lengths // plan.tile_tokens).sum()
            assert plan.records[:, 0].min() >= 0
            assert plan.records[:, 1].max() <= cu[-1]
    finally:
        stop.set()
        thread.join()
