"""Serving attention on a GPU, by the kernels of both families: features and pairs of them against
float64, pages and policies bit by bit, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

import exactile
from cases import LENS_K, LENS_Q, MASKS, Batch, assert_same_bits, cumulate, make_batch
from cuda_device import HALVES, ROWS, needs_gpu, to_numpy, torch
from cuda_serving import ALL, PAGES, assert_same_results, serve, there
from serving import (
    FEATURES,
    NO_PAGES,
    SENTINEL,
    counted,
    in_pages,
    some_sinks,
    some_slopes,
    with_features,
    with_scores,
)

pytestmark = needs_gpu

KIND_OF = {name: kind for kind, names in FEATURES.items() for name in names}
REFUSED = {name for name in KIND_OF if "gaps" in name or "reversed" in name}
"""Pages whose rows do not begin at multiples of 16 bytes, or that torch cannot have."""
OF_KINDS = {kind: next(name for name in names if name not in REFUSED)
            for kind, names in FEATURES.items()}  # fmt: skip
PAIRS = list(itertools.combinations(OF_KINDS.values(), 2))


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", [name for name in KIND_OF if name not in REFUSED])
def test_each_feature(family, feature):
    batch = make_batch(LENS_Q, LENS_K, heads=(6, 2), dtype="bfloat16")
    batch = with_features(batch, [feature], seed=1)
    batch.check(*serve(batch))


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_each_pair_of_kinds(family, pair):
    batch = with_features(make_batch(LENS_Q, LENS_K, dtype="bfloat16"), pair)
    batch.check(*serve(batch))


@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), ROWS)
@pytest.mark.parametrize("mask", ["full", "window"])
def test_all_at_once_for_every_supported_row(family, dtype, head_dim, head_dim_v, mask):
    shape = dict(dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v)
    names = [name for name in [*ALL, PAGES] if name != "window" or mask == "window"]
    for lens_q, lens_k in ((LENS_Q, LENS_K), ([300, 1, 0, 700], [300, 500, 5, 650])):
        batch = with_features(make_batch(lens_q, lens_k, **shape), names)
        batch.check(*serve(batch))


def test_schedules_change_no_bit(family):
    """Policies, packing of heads and the number of work-groups."""
    batch = make_batch([300, 0, 31, 1, 1029], [400, 3, 700, 513, 1029], dtype="bfloat16")
    batch = with_features(batch, [*ALL, PAGES])
    results = serve(batch)
    batch.check(*results)
    for scheduler, pack_gqa, workers in itertools.product(
        exactile.SCHEDULERS, (False, True), (None, 3)
    ):
        again = serve(batch, scheduler=scheduler, pack_gqa=pack_gqa, workers=workers)
        assert_same_results(counted(batch, again), counted(batch, results))


# --- scores ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("softcap", [0.7, 30.0, 1e4])
def test_softcap_of_large_scores(family, dtype, softcap):
    batch = make_batch([130, 7], dtype=dtype, causal=True)
    batch.q[:] *= batch.q.dtype.type(12)
    batch = with_scores(batch, softcap=softcap)
    batch.check(*serve(batch))


@pytest.mark.parametrize("dtype", HALVES)
def test_alibi_over_many_keys(family, dtype):
    """Biases of thousands."""
    for mask in {}, {"window": (900, 40)}:
        batch = make_batch([70, 5], [2300, 900], heads=(4, 1), dtype=dtype, **mask)
        batch = with_scores(batch, slopes=[8.0, 0.5, 2.0**-8, 0.0])
        batch.check(*serve(batch))


@pytest.mark.parametrize("dtype", HALVES)
def test_scores_of_sequences_that_share_tiles(family, dtype):
    """Sinks, softcap and ALiBi in tiles of several sequences."""
    sizes = np.random.default_rng(0).integers(0, 30, 60)
    batch = make_batch(sizes, heads=(4, 2), dtype=dtype, causal=True)
    batch = with_scores(batch, 20.0, some_sinks(4), some_slopes(60, 4))
    batch.check(*serve(batch, pack_sequences=True))


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_that_see_no_key_have_their_sink(family, dtype):
    batch = make_batch([6, 3], [2, 0], dtype=dtype, causal=True)
    sinks = np.array([0.5, -np.inf, -30.0, 200.0], np.float32)
    out, lse = serve(with_scores(batch, sinks=sinks))
    for rows in slice(4), slice(6, 9):
        assert (out[rows] == 0).all()
        np.testing.assert_array_equal(
            lse[:, rows], np.broadcast_to(sinks[:, None], lse[:, rows].shape)
        )
    assert np.isfinite(lse[[0, 2, 3], 4:6]).all()


# --- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), ROWS)
@pytest.mark.parametrize("mask", [*MASKS][:3])
def test_pages_change_no_bit(family, dtype, head_dim, head_dim_v, mask):
    shape = dict(dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v)
    batch = make_batch([5, 0, 130, 64, 1], [700, 4, 70, 257, 128], **shape, **MASKS[mask])
    want = serve(batch, pack_sequences=False)
    for page_size, layout, poison in (
        (8, "side by side", np.inf),
        (16, "side by side", np.nan),
        (48, "one behind the other", np.inf),
        (64, "heads first", np.nan),
        (256, "dense", np.nan),
    ):
        paged = in_pages(batch, page_size, layout, keep_cu_k=page_size == 64, poison=poison)
        assert_same_results(serve(paged), want)


@pytest.mark.parametrize("page_size", [1, 2, 3, 20, 100])
def test_pages_that_no_box_divides(family, page_size):
    """By address, which the kernels of sm80 do on every GPU."""
    batch = make_batch([5, 130, 1], [700, 70, 128], heads=(4, 2), dtype="bfloat16", causal=True)
    paged = in_pages(batch, page_size)
    batch.check(*serve(paged))


def test_a_prefix_that_sequences_share(family):
    keys = [4096 + 20, 4096 + 50]
    batch = make_batch([9, 33], keys, heads=(2, 1), dtype="bfloat16", causal=True)
    batch.k[keys[0] : keys[0] + 4096] = batch.k[:4096]
    batch.v[keys[0] : keys[0] + 4096] = batch.v[:4096]
    paged = in_pages(batch, 64)
    paged.serving["block_table"][1, :64] = paged.serving["block_table"][0, :64]
    results = serve(paged)
    batch.check(*results)
    assert_same_results(results, serve(batch, pack_sequences=False))


@pytest.mark.parametrize("number", NO_PAGES)
@pytest.mark.parametrize("page_size", [3, 16])
def test_numbers_of_no_page_lead_nowhere_else(family, number, page_size):
    """Other sequences' results stay; nothing outside the cache is read."""
    batch = make_batch([40, 7], [100, 90], dtype="bfloat16")
    paged = in_pages(batch, page_size, poison=0.0)
    want, wrong = serve(paged), replace(paged, serving=dict(paged.serving))
    table = wrong.serving["block_table"].copy()
    table[0, 1] = number
    wrong.serving["block_table"] = table
    out, lse = serve(wrong)
    assert_same_results((out[40:], lse[:, 40:]), (want[0][40:], want[1][:, 40:]))
    assert np.isfinite(out.astype(np.float32)).all()
    assert np.isfinite(lse).all()


def test_a_graph_replays_with_another_table_and_padding(family):
    """The captured run has room for more rows than there are."""
    batch = in_pages(make_batch([3, 1, 20], [70, 33, 20], dtype="bfloat16", causal=True), 16)
    rows = np.concatenate([batch.q, np.full((8, 4, 64), np.nan, batch.q.dtype)])
    on = there(replace(batch, q=rows))
    plan = exactile.plan(
        batch.cu_q, seqused_k=batch.serving["seqused_k"], page_size=16, num_heads_q=4,
        num_heads_kv=2, head_dim=64, dtype="bfloat16", causal=True, backend="cuda",
    )  # fmt: skip
    out, table = torch.full_like(on.q, SENTINEL), on.serving["block_table"]
    plan.run(on.q, on.k, on.v, out=out, block_table=table)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.run(on.q, on.k, on.v, out=out, block_table=table)
    again = in_pages(replace(batch, serving={}, cu_k=cumulate([70, 33, 20]), **_packed(batch)),
                     16, seed=5)  # fmt: skip
    moved = there(again)
    on.k.copy_(moved.k)
    on.v.copy_(moved.v)
    table.copy_(moved.serving["block_table"])
    want = to_numpy(out)
    out[:24] = 0
    graph.replay()
    assert_same_bits(to_numpy(out), want)
    assert (to_numpy(out)[24:] == SENTINEL).all()


def _packed(batch: Batch) -> dict[str, np.ndarray]:
    """k and v of a paged batch, packed."""
    used, table = batch.serving["seqused_k"], batch.serving["block_table"]
    return {
        name: np.concatenate(
            [x[table[b, : -(-n // x.shape[1])]].reshape(-1, *x.shape[2:])[:n]
             for b, n in enumerate(used)]
        )
        for name, x in (("k", batch.k), ("v", batch.v))
    }  # fmt: skip


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["gaps"])
def test_rows_at_odd_addresses(family, layout):
    batch = in_pages(make_batch([5], [40], dtype="bfloat16"), 16, layout)
    with pytest.raises(ValueError, match="expected rows of k to begin at multiples of 16 bytes"):
        serve(batch)


@pytest.mark.parametrize("name", ["block_table", "sinks", "alibi_slopes"])
def test_arrays_elsewhere(name):
    batch = make_batch([5, 3], [40, 7], dtype="bfloat16")
    batch = in_pages(with_scores(batch, sinks=some_sinks(4), slopes=some_slopes(2, 4)), 16)
    on = there(batch)
    on.serving[name] = batch.serving[name]
    with pytest.raises(ValueError, match=f"expected {name} on the device of q, CUDA"):
        on.run()
