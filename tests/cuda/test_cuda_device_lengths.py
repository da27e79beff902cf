"""Lengths on a GPU that say which rows and keys count, packed or in pages: the bits of the same
lengths on the host, and of other ones when a graph is replayed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import exactile
from cases import LENS_K, LENS_Q, MASKS, Batch, assert_same_bits, cumulate, make_batch
from cuda_device import needs_gpu, to_numpy, torch
from cuda_serving import serve, there
from exactile import _core
from serving import SENTINEL, counted, in_pages, with_features, with_used_lengths

pytestmark = needs_gpu

FEATURES = ["wide softcap", "sinks", "alibi of sequences", "seqused_q", "seqused_k", "padding"]
PLAN = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bfloat16", causal=True)


def int32(x):
    """`x` on the GPU."""
    return torch.from_numpy(np.ascontiguousarray(x, np.int32)).cuda()


def planned_there(batch: Batch) -> Batch:
    """A batch on the GPU, with its lengths."""
    on = there(batch)
    for name in {"seqused_q", "seqused_k"} & set(on.serving):
        on.serving[name] = int32(on.serving[name])
    cu_k = None if on.cu_k is None else int32(on.cu_k)
    return replace(on, cu_q=int32(on.cu_q), cu_k=cu_k)


def check_same_bits(batch: Batch, on: Batch, **options) -> None:
    """Of `on`, whose lengths are on the GPU, and of `batch`, whose are not."""
    want = serve(batch, pack_sequences=False, num_splits=1)
    out = torch.full((*batch.q.shape[:2], batch.v.shape[-1]), SENTINEL, dtype=on.q.dtype).cuda()
    _, lse = on.run(out=out, **options)
    assert_same_bits(to_numpy(out), want[0])
    got = counted(batch, (want[0], to_numpy(lse)))
    assert_same_bits(got[1], counted(batch, want)[1])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sides", ["q", "k", "qk"])
def test_used_lengths(family, mask, sides):
    batch = make_batch(LENS_Q, LENS_K, dtype="bfloat16", **MASKS[mask])
    batch = with_used_lengths(batch, sides)
    check_same_bits(batch, planned_there(batch))


@pytest.mark.parametrize("order", [x for x in _core.ORDERS if x != "sequence_major"])
@pytest.mark.parametrize("page_size", [3, 16, 64])
def test_pages(family, order, page_size):
    """Without max_seqlen_k: as many keys as the table's columns have pages for."""
    batch = make_batch([300, 0, 31, 1, 700], [400, 3, 700, 513, 700], dtype="bfloat16", causal=True)
    batch = in_pages(with_used_lengths(batch, "q"), page_size)
    for scheduler in "auto", "ValidOnlyIndividual", "ValidOnlyPersistent":
        check_same_bits(batch, planned_there(batch), order=order, scheduler=scheduler)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("mask", ["full", "causal", "window"])
def test_with_all_features(family, mask, paged):
    batch = make_batch([300, 1, 0, 700], [300, 500, 5, 650], dtype="bfloat16", **MASKS[mask])
    batch = with_features(batch, FEATURES)
    batch = in_pages(batch, 16, "side by side") if paged else batch
    check_same_bits(batch, planned_there(batch))


@pytest.mark.parametrize("paged", [False, True])
def test_more_sequences_than_a_block_of_the_planner_takes(family, paged):
    batch = make_batch([3, 200, 0, 17] * 900, dtype="float16", heads=(2, 2), causal=True)
    batch = with_used_lengths(batch, "qk")
    batch = in_pages(batch, 16) if paged else batch
    check_same_bits(batch, planned_there(batch))


@pytest.mark.parametrize("used", [1 << 30, 2**31 - 1])
@pytest.mark.parametrize("paged", [False, True])
def test_used_lengths_that_are_too_large(family, paged, used):
    """Count as the whole sequence: with pages max_seqlen_k, past which no column is read."""
    batch = make_batch([40, 7], [100, 100], dtype="bfloat16", causal=True)
    batch = (
        in_pages(batch, 20)
        if paged
        else replace(batch, serving={"seqused_k": np.array([100, 100])})
    )
    batch.serving["seqused_q"] = np.array([40, 7], np.int32)
    on = planned_there(batch)
    on.serving["seqused_q"].fill_(used)
    on.serving["seqused_k"].fill_(used)
    if paged:
        on.serving["block_table"] = on.serving["block_table"][:, :5].contiguous()
    check_same_bits(batch, on, **(dict(max_seqlen_k=100) if paged else {}))


@pytest.mark.parametrize("paged", [False, True])
def test_fewer_than_none(family, paged):
    """Negative: none. Rows that see no key are 0, rows that do not count are left alone."""
    batch = make_batch([40, 7], [100, 90], dtype="bfloat16")
    batch = (
        in_pages(batch, 16) if paged else replace(batch, serving={"seqused_k": np.array([100, 90])})
    )
    batch.serving |= dict(seqused_q=np.array([0, 7], np.int32), seqused_k=np.zeros(2, np.int32))
    on = planned_there(batch)
    on.serving["seqused_q"][0] = -5
    on.serving["seqused_k"].fill_(-1)
    check_same_bits(batch, on)


def test_too_few_columns(family):
    """Of the longest that the plan is told of, whatever the lengths are."""
    batch = in_pages(make_batch([5, 5], [40, 20], dtype="bfloat16", causal=True), 16)
    on = planned_there(batch)
    columns = on.serving["block_table"].shape[1]
    lengths = dict(seqused_k=on.serving["seqused_k"], total_q=10, page_size=16)
    for most_keys, fits in ((16 * columns, True), (16 * columns + 1, False)):
        plan = exactile.plan(on.cu_q, **lengths, **PLAN, max_seqlen_k=most_keys)
        if fits:
            plan.run(on.q, on.k, on.v, block_table=on.serving["block_table"])
            continue
        with pytest.raises(ValueError, match=rf"block_table of shape \(2, {columns + 1} or more\)"):
            plan.run(on.q, on.k, on.v, block_table=on.serving["block_table"])


@pytest.mark.parametrize("name", ["seqused_q", "seqused_k"])
def test_lengths_that_are_refused(name):
    cu, used = int32([0, 8, 16]), int32([8, 3])
    exactile.plan(cu, **PLAN, total_q=16, **{name: used})
    for bad, error, message in (
        (used.long(), TypeError, f"{name} on a GPU of dtype int32, got torch.int64"),
        (used.cpu(), TypeError, f"{name} on a GPU, where cu_seqlens_q is, got a Tensor elsewhere"),
        (used[:1], ValueError, f"{name} of length 2 .*, got 1"),
        (int32([8, 0, 3, 0])[::2], ValueError, f"{name} to be contiguous, got stride 2"),
    ):
        with pytest.raises(error, match=f"^plan: expected {message}"):
            exactile.plan(cu, **PLAN, total_q=16, **{name: bad})


def test_no_sequences(family):
    q, cache = torch.zeros(4, 4, 64).bfloat16().cuda(), torch.zeros(2, 16, 2, 64).bfloat16().cuda()
    out = torch.full_like(q, SENTINEL)
    table = int32(np.zeros((0, 3)))
    exactile.varlen_prefill(
        q, cache, cache, int32([0]), seqused_k=int32([]), block_table=table, out=out
    )
    assert bool((out == SENTINEL).all())


def cache_of(lengths: list[int], seed: int) -> Batch:
    """A decode step of three sequences with a prompt, in as many pages for any lengths."""
    batch = make_batch([1, 37, 1], lengths, dtype="bfloat16", causal=True, seed=seed)
    paged = in_pages(batch, 16, seed=seed)
    pages = 40 - len(paged.k)
    more = {name: np.concatenate([x, np.full((pages, *x.shape[1:]), np.nan, x.dtype)])
            for name, x in (("k", paged.k), ("v", paged.v))}  # fmt: skip
    return replace(paged, **more)


def test_a_graph_replays_with_other_used_lengths_and_another_table(family):
    """Lengths, tables and caches of the same sizes, as an engine's buffers are."""
    first, second = (
        cache_of(lengths, i) for i, lengths in enumerate(([70, 200, 33], [1, 37, 300]))
    )
    columns, most_keys = 24, 320
    q = torch.full((50, 4, 64), torch.nan).bfloat16().cuda()
    k, v = (torch.zeros(40, 16, 2, 64).bfloat16().cuda() for _ in "kv")
    cu, used_q, used_k = int32([0, 1, 38, 39]), int32([0, 0, 0]), int32([0, 0, 0])
    table, out = int32(np.zeros((3, columns))), torch.empty_like(q)

    def planned():
        lengths = dict(seqused_q=used_q, seqused_k=used_k, total_q=50, max_seqlen_k=most_keys)
        return exactile.plan(cu, **lengths, **PLAN, page_size=16)

    def fill(batch: Batch, rows: list[int]) -> None:
        on = there(batch)
        q[:39], out[:] = on.q, SENTINEL
        k.copy_(on.k)
        v.copy_(on.v)
        used_q.copy_(int32(rows))
        used_k.copy_(int32(batch.serving["seqused_k"]))
        given = on.serving["block_table"]
        table[:, : given.shape[1]] = given
        batch.serving["seqused_q"] = np.array(rows, np.int32)

    fill(first, [1, 37, 1])
    planned().run(q, k, v, out=out, block_table=table)  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = planned()
        plan.run(q, k, v, out=out, block_table=table)
    for batch, rows in ((first, [1, 37, 1]), (second, [1, 20, 0]), (first, [0, 37, 1])):
        fill(batch, rows)
        graph.replay()
        assert_same_bits(to_numpy(out)[:39], serve(batch, pack_sequences=False, num_splits=1)[0])
        assert bool((out[39:] == SENTINEL).all())


def test_a_graph_of_packed_keys_replays_with_other_used_lengths(family):
    batch = make_batch([30, 200, 5], [80, 300, 200], dtype="bfloat16", causal=True)
    on, cu_q, cu_k = there(batch), int32(batch.cu_q), int32(batch.cu_k)
    used_q, used_k, out = int32([30, 200, 5]), int32([80, 300, 200]), torch.empty_like(on.q)

    def planned():
        lengths = dict(seqused_q=used_q, seqused_k=used_k, total_q=235, total_k=580)
        return exactile.plan(cu_q, cu_k, **lengths, **PLAN)

    planned().run(on.q, on.k, on.v, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = planned()
        plan.run(on.q, on.k, on.v, out=out)
    for rows, keys in (([1, 200, 0], [80, 210, 3]), ([30, 7, 5], [31, 300, 200])):
        used_q.copy_(int32(rows))
        used_k.copy_(int32(keys))
        out[:] = SENTINEL
        graph.replay()
        same = replace(batch, serving=dict(seqused_q=np.array(rows), seqused_k=np.array(keys)))
        assert_same_bits(to_numpy(out), serve(same, pack_sequences=False, num_splits=1)[0])


def test_a_plan_keeps_its_lengths(family):
    """Their memory is not given to others while a graph may read it."""
    batch = make_batch([5, 9], [40, 20], dtype="bfloat16", causal=True)
    on = there(in_pages(batch, 16))
    table, out = on.serving["block_table"], torch.empty_like(on.q)
    most_keys = 16 * table.shape[1]
    want = to_numpy(on.run(num_splits=1)[0])
    lengths = [int32(cumulate([5, 9])), int32([40, 20])]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan = exactile.plan(
            lengths[0],
            seqused_k=lengths[1],
            page_size=16,
            total_q=14,
            max_seqlen_k=most_keys,
            **PLAN,
        )
        plan.run(on.q, on.k, on.v, out=out, block_table=table)
    lengths.clear()
    others = [int32(np.zeros(3)) for _ in range(64)]
    graph.replay()
    assert_same_bits(to_numpy(out), want)
    assert len(others) == 64
    del plan
