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
from cuda_serving import serve, there
from serving import (
    ALL,
    KIND_OF,
    NO_PAGES,
    ON_HOST,
    PAGES,
    SENTINEL,
    assert_same_results,
    check_alibi_over_many_keys,
    check_large_scores_with_softcap,
    check_number_of_no_page,
    check_rows_without_keys_have_their_sink,
    check_shared_prefix,
    counted,
    in_pages,
    pairs_of_kinds,
    some_sinks,
    some_slopes,
    with_features,
    with_scores,
)

pytestmark = needs_gpu

# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", [name for name in KIND_OF if name not in ON_HOST])
def test_each_feature(family, feature):
    batch = make_batch(LENS_Q, LENS_K, heads=(6, 2), dtype="bfloat16")
    batch = with_features(batch, [feature], seed=1)
    batch.check(*serve(batch))


@pytest.mark.parametrize("pair", pairs_of_kinds(ON_HOST), ids=" and ".join)
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
    check_large_scores_with_softcap(serve, dtype, softcap)


@pytest.mark.parametrize("dtype", HALVES)
def test_alibi_over_many_keys(family, dtype):
    check_alibi_over_many_keys(serve, dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_scores_of_sequences_that_share_tiles(family, dtype):
    """Sinks, softcap and ALiBi in tiles of several sequences."""
    sizes = np.random.default_rng(0).integers(0, 30, 60)
    batch = make_batch(sizes, heads=(4, 2), dtype=dtype, causal=True)
    batch = with_scores(batch, 20.0, some_sinks(4), some_slopes(60, 4))
    batch.check(*serve(batch, pack_sequences=True))


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_that_see_no_key_have_their_sink(family, dtype):
    check_rows_without_keys_have_their_sink(serve, dtype)


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
    check_shared_prefix(serve, pack_sequences=False)


@pytest.mark.parametrize("number", NO_PAGES)
@pytest.mark.parametrize("page_size", [3, 16])
def test_numbers_of_no_page_lead_nowhere_else(family, number, page_size):
    """Other sequences' results stay; nothing outside the cache is read."""
    check_number_of_no_page(serve, number, page_size)


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
