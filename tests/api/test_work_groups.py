"""`Plan.launched` is what the policy's own num_work_groups() says.

The planner asks the classes that the module was built with. Here a user's policy that only inherits
from a shipped one is compiled anew and asked for the same plan, and the numbers are counted once
more in Python.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import exactile
from abilities import needs
from cases import cumulate
from exactile import _core

SOURCE = """
#include <exactile/scheduler.hpp>
struct Own : exactile::LIKE {
  using LIKE::LIKE;
  BODY
};
"""
MORE_THAN_TILES = {
    "Individual": "params.num_tiles() + params.max_m_blocks + workers",
    "ValidOnlyIndividual": "params.max_tiles() + params.num_heads + workers",
    "ValidOnlyPersistent": "params.list.max_tiles() + params.list.num_heads + workers",
}
"""Of the policy's Params and the workers, so that each of them counts."""
HEADS = [(4, 4), (6, 2), (8, 1)]
LENGTHS = [[300, 0, 31, 1, 129, 500], [34] * 40, [7], [0, 0], []]
EXTREMES = [[2**20, 1], [1] * 5000]
WORKERS = [1, 3, 1000]


def own(like: str, count: str | None = None) -> exactile.Scheduler:
    body = ""
    if count is not None:
        body = (
            "EXACTILE_HOST_DEVICE static int num_work_groups(const Params& params, int workers) "
            f"{{ (void)params; (void)workers; return {count}; }}"
        )
    return exactile.Scheduler("Own", SOURCE.replace("LIKE", like).replace("BODY", body), like)


def requests(backend: str, scheduler: str, lengths: list[list[int]]):
    """What may change how many there are: lengths, heads, packing, order, workers."""
    has_list = scheduler != "Individual"
    orders = (None, *_core.ORDERS) if has_list else (None,)
    packed = (None, True) if backend == "cuda" and has_list else (None,)
    for lens, heads, pack_gqa, pack_sequences in itertools.product(
        lengths, HEADS, (None, False, True), packed
    ):
        for order, workers in zip(itertools.cycle(orders), WORKERS, strict=False):
            yield dict(
                seqlens_q=lens,
                num_heads_q=heads[0],
                num_heads_kv=heads[1],
                head_dim=128,
                dtype="bfloat16",
                causal=order is None,
                backend=backend,
                order=order,
                pack_gqa=pack_gqa,
                pack_sequences=pack_sequences,
                workers=workers,
            )


def counted(plan: exactile.Plan) -> tuple[int, int, int]:
    """Tiles, and indices of the padded grid, by the lengths alone; heads of a tile list."""
    heads = plan.num_heads_kv if plan.pack_gqa else plan.num_heads_q
    m_blocks = -(-plan.seqlens.q // plan.tile_tokens)
    padded = plan.batch * int(m_blocks.max(initial=0)) * heads
    tiles = plan.num_records if plan.pack_sequences else int(m_blocks.sum())
    return tiles * heads, padded, heads


@pytest.mark.parametrize("backend", exactile.BACKENDS)
def test_of_a_shipped_policy(backend, scheduler):
    inherited = own(scheduler)
    for request in requests(backend, scheduler, LENGTHS + EXTREMES):
        plan = exactile.plan(**request, scheduler=scheduler)
        tiles, padded, _ = counted(plan)
        assert plan.valid == tiles
        want = {
            "Individual": padded,
            "ValidOnlyIndividual": tiles,
            "ValidOnlyPersistent": min(tiles, request["workers"]),
        }
        assert plan.launched == want[scheduler], request
        # What the planner left open for a user's policy: the same as here.
        request |= dict(pack_gqa=plan.pack_gqa, pack_sequences=plan.pack_sequences or None)
        assert exactile.plan(**request, scheduler=inherited).launched == plan.launched, request


@pytest.mark.parametrize("backend", exactile.BACKENDS)
def test_of_a_policy_with_a_count_of_its_own(backend, scheduler):
    mine = own(scheduler, MORE_THAN_TILES[scheduler])
    for request in requests(backend, scheduler, LENGTHS):
        plan = exactile.plan(**request, scheduler=mine)
        tiles, padded, heads = counted(plan)
        more = heads
        if scheduler == "Individual":
            tiles = padded
            more = int((-(-plan.seqlens.q // plan.tile_tokens)).max(initial=0))
        assert plan.launched == tiles + more + request["workers"], request


def test_every_shipped_policy_is_here(scheduler):
    assert scheduler in MORE_THAN_TILES


@needs("cuda")
@pytest.mark.parametrize("pack_gqa", [False, True])
def test_with_lengths_on_a_gpu(scheduler, pack_gqa):
    """Of the bound that the totals give: a tile of every sequence may be a partial one."""
    import torch

    lengths = [300, 0, 31, 1, 129, 500]
    cu_seqlens = torch.tensor(cumulate(lengths), device="cuda")
    request = dict(num_heads_q=6, num_heads_kv=2, head_dim=128, dtype="bfloat16", workers=3)
    request |= dict(total_q=sum(lengths), pack_gqa=pack_gqa)
    if scheduler == "Individual":
        with pytest.raises(
            ValueError, match="expected lengths on a GPU for the cuda backend and a scheduler"
        ):
            exactile.plan(cu_seqlens, **request, scheduler=scheduler)
        return
    plan = exactile.plan(cu_seqlens, **request, scheduler=scheduler)
    exact = exactile.plan(
        seqlens_q=np.array(lengths),
        **request,
        scheduler=scheduler,
        backend="cuda",
        pack_sequences=False,
    )
    heads = 2 if pack_gqa else 6
    bound = plan.num_records * heads
    assert exact.valid <= bound
    want = bound if scheduler == "ValidOnlyIndividual" else min(bound, 3)
    assert plan.launched == want
    assert exactile.plan(cu_seqlens, **request, scheduler=own(scheduler)).launched == want
    mine = own(scheduler, MORE_THAN_TILES[scheduler])
    assert exactile.plan(cu_seqlens, **request, scheduler=mine).launched == bound + heads + 3
