"""Split-KV on a GPU: work-groups that share the keys of a tile, by the kernels of both families."""

from __future__ import annotations

import numpy as np
import pytest

import exactile
from cases import (
    LENS_K,
    LENS_Q,
    MASKS,
    assert_same_bits,
    batch_with_scores,
    check_poison_stays,
    make_batch,
)
from cuda_device import HALVES, ROWS, needs_gpu, run, to_gpu, to_numpy, torch
from cuda_serving import serve
from serving import (
    ALL,
    PAGES,
    assert_same_results,
    counted,
    in_pages,
    some_sinks,
    with_features,
    with_scores,
)

pytestmark = needs_gpu


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("num_splits", [2, 7, 1000])
def test_every_mask(family, mask, num_splits):
    for lens_q, lens_k in ((LENS_Q, LENS_K), ([300, 1, 0, 700], [300, 500, 5, 650])):
        batch = make_batch(lens_q, lens_k, heads=(6, 2), dtype="bfloat16", **MASKS[mask])
        batch.check(*run(batch, num_splits=num_splits))


@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), ROWS)
def test_every_supported_row(family, dtype, head_dim, head_dim_v):
    shape = dict(dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v)
    batch = make_batch([1, 40, 1], [3000, 900, 64], heads=(8, 2), causal=True, **shape)
    for pack_gqa in False, True:
        batch.check(*run(batch, num_splits=5, pack_gqa=pack_gqa))
    names = [*ALL, PAGES]
    batch = with_features(make_batch([3, 40, 1], [3000, 900, 64], **shape), names)
    batch.check(*serve(batch, num_splits=5))


@pytest.mark.parametrize("dtype", HALVES)
def test_unasked(family, dtype):
    """One sequence, as the planner splits it; its lse too."""
    batch = make_batch([1], [20000], heads=(8, 2), head_dim=128, dtype=dtype)
    plan = exactile.plan(batch.cu_q, batch.cu_k, num_heads_q=8, num_heads_kv=2, head_dim=128,
                         dtype=dtype, backend="cuda")  # fmt: skip
    assert plan.num_splits > 10
    batch.check(*run(batch))
    paged = in_pages(batch, 16)
    assert_same_results(serve(paged), run(batch))


def test_schedules_change_no_bit(family):
    """Policies, orders, packing of heads and the number of work-groups."""
    batch = make_batch([30, 0, 31, 1, 200], [4000, 3, 700, 513, 1029], dtype="bfloat16")
    batch = with_features(batch, [*ALL, PAGES])
    results = serve(batch, num_splits=3)
    for scheduler in exactile.SCHEDULERS:
        if scheduler == "Individual":
            continue
        for options in (
            dict(pack_gqa=False),
            dict(pack_gqa=False, workers=3),
            dict(pack_gqa=False, order="head_major"),
            dict(pack_gqa=False, order="natural"),
        ):
            first = serve(batch, num_splits=3, pack_gqa=False)
            again = serve(batch, num_splits=3, scheduler=scheduler, **options)
            assert_same_results(counted(batch, again), counted(batch, first))
    batch.check(*results)


@pytest.mark.parametrize("order", ["rising", "mixed"])
@pytest.mark.parametrize("dtype", HALVES)
def test_scores_as_large_as_a_float(family, dtype, order):
    """References far apart, or so large that a logarithm would not tell sums apart."""
    for largest in 2.0**20, 2.0**32:
        batch = batch_with_scores(dtype, largest, 900, order)
        batch.check(*run(batch, num_splits=4))


def test_rows_that_see_no_key(family):
    """Out 0 and lse -inf; with sinks their sink."""
    batch = make_batch([600, 3], [300, 0], heads=(4, 2), dtype="bfloat16", causal=True)
    out, lse = run(batch, num_splits=3)
    assert (out[:300] == 0).all()
    assert np.isneginf(lse[:, :300]).all()
    batch.check(out, lse)
    sinks = some_sinks(4)
    out, lse = serve(with_scores(batch, sinks=sinks), num_splits=3)
    np.testing.assert_array_equal(lse[:, :300], np.repeat(sinks[:, None], 300, 1))
    assert (out[:300] == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_stays_in_its_sequence(family, poison):
    def split(batch, scheduler="ValidOnlyPersistent"):
        return run(batch, scheduler=scheduler, num_splits=2)

    check_poison_stays(split, "bfloat16", poison, "ValidOnlyIndividual")


def test_a_plan_on_two_streams_at_once(family):
    """Each stream has partial results of its own."""
    batch = make_batch([1] * 3, [30000, 500, 9000], heads=(8, 2), head_dim=128, dtype="bfloat16")
    other = make_batch([1] * 3, [30000, 500, 9000], heads=(8, 2), head_dim=128, dtype="bfloat16",
                       seed=1)  # fmt: skip
    plan = exactile.plan(batch.cu_q, batch.cu_k, num_heads_q=8, num_heads_kv=2, head_dim=128,
                         dtype="bfloat16", backend="cuda", num_splits=40)  # fmt: skip
    on = [[to_gpu(x) for x in (b.q, b.k, b.v)] for b in (batch, other)]
    want = [to_numpy(plan.run(*arrays)) for arrays in on]
    streams = [torch.cuda.Stream() for _ in on]
    torch.cuda.synchronize()
    for _ in range(50):
        results = []
        for arrays, stream in zip(on, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(plan.run(*arrays))
        torch.cuda.synchronize()
        for got, wanted in zip(results, want, strict=True):
            assert_same_bits(to_numpy(got), wanted)


def test_in_a_graph(family):
    batch = make_batch([1, 2], [9000, 700], heads=(8, 2), head_dim=64, dtype="float16")
    plan = exactile.plan(batch.cu_q, batch.cu_k, num_heads_q=8, num_heads_kv=2, head_dim=64,
                         dtype="float16", backend="cuda", num_splits=20)  # fmt: skip
    q, k, v = (to_gpu(x) for x in (batch.q, batch.k, batch.v))
    want = to_numpy(plan.run(q, k, v))
    out = torch.empty_like(q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.run(q, k, v, out=out)
        plan.run(q, k, v, out=out)
    for _ in range(3):
        out.zero_()
        graph.replay()
        assert_same_bits(to_numpy(out), want)
