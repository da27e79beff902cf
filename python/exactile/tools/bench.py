"""Bench: measures one plan on random data, after comparing sampled rows with the reference.

A rate always comes from the work that exists (`Plan.flops`, `Plan.bytes`), never from nominal
lengths.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import exactile
from exactile._arrays import running_sums
from exactile.planning import Plan
from exactile.tools.machines import Machine
from exactile.tools.memory import key_rows
from exactile.tools.peers import Peer
from exactile.tools.reference import to_bfloat16, widened
from exactile.tools.tolerance import Verification, compare
from exactile.workloads import Lengths

_DRAWN = 1 << 22
"""Numbers that are drawn at a time, in float32, whatever the dtype."""


class Data(NamedTuple):
    """Inputs; bfloat16 is uint16 storage."""

    q: npt.NDArray[Any]  # (total_q, num_heads_q, head_dim)
    k: npt.NDArray[Any]  # (total_k, num_heads_kv, head_dim), or in pages
    v: npt.NDArray[Any]  # (total_k, num_heads_kv, head_dim_v), or in pages


@dataclass(frozen=True)
class PeerResult:
    """Another library on the same data, timed in turns with ours."""

    name: str
    version: str
    median_ms: float
    min_ms: float
    max_ms: float
    spread: float
    tflops: float
    ratio: float
    """Our rate to the peer's."""
    matmul_tflops: float
    """Rate of torch's matrix product in the same process: 2048^3, on a GPU 8192^3, sustained."""
    max_difference: float
    """Largest |out - peer's out|."""


@dataclass(frozen=True)
class Result:
    """One measured case. Times in milliseconds; spread is (max - min) / median."""

    command: str
    version: str
    device: dict[str, str]
    isa: str | None
    plan: dict[str, Any]
    iterations: int
    median_ms: float
    min_ms: float
    max_ms: float
    spread: float
    tflops: float
    gbps: float
    verification: Verification | None
    peer: PeerResult | None = None

    def to_json(self) -> str:
        """One line of JSON; a number that is not finite becomes null."""
        fields = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return json.dumps(fields)


def plan_fields(plan: Plan) -> dict[str, Any]:
    """Return the attributes of a plan, its lengths summarised, as plain values."""
    fields = {name: getattr(plan, name) for name in Plan.__annotations__}
    for side, seqlens in plan.seqlens._asdict().items():
        fields[f"total_{side}"] = int(seqlens.sum(dtype=np.int64))
        fields[f"max_seqlen_{side}"] = int(seqlens.max(initial=0))
    return fields


def random_data(plan: Plan, seed: int) -> Data:
    """Draw standard normal q, k and v for a plan, of its dtype."""
    rng = np.random.default_rng(seed)
    bfloat16 = plan.dtype == "bfloat16"

    def tensor(*shape: int) -> npt.NDArray[Any]:
        x = np.empty(shape, np.uint16 if bfloat16 else plan.dtype)
        flat = x.reshape(-1)
        for begin in range(0, flat.size, _DRAWN):
            part = flat[begin : begin + _DRAWN]
            drawn = rng.standard_normal(part.size, np.float32)
            part[:] = to_bfloat16(drawn) if bfloat16 else drawn
        return x

    total_q, total_k = int(plan.seqlens.q.sum(dtype=np.int64)), key_rows(plan)
    keys = (total_k // plan.page_size, plan.page_size) if plan.page_size else (total_k,)
    return Data(
        tensor(total_q, plan.num_heads_q, plan.head_dim),
        tensor(*keys, plan.num_heads_kv, plan.head_dim),
        tensor(*keys, plan.num_heads_kv, plan.head_dim_v),
    )


def random_block_table(plan: Plan, seed: int) -> npt.NDArray[np.int32]:
    """Pages of a plan's sequences, in random order: int32, (batch, most pages of one)."""
    pages = -(-plan.seqlens.k.astype(np.int64) // plan.page_size)
    order = np.random.default_rng(seed).permutation(int(pages.sum())).astype(np.int32)
    begins = running_sums(pages)
    columns = np.arange(pages.max(initial=0))
    places = np.minimum(begins[:-1, None] + columns, max(0, order.size - 1))
    table: npt.NDArray[np.int32] = np.where(columns < pages[:, None], order[places], -1)
    return table.astype(np.int32)


def sampled_rows(plan: Plan) -> list[tuple[int, int]]:
    """Choose (sequence, row) pairs that stand for a planned batch.

    The first and last sequence of every class (no query, one, less than / exactly / more than a
    tile; no key; fewer, as many or more keys than queries) and the longest ones; of each the first,
    middle and last row and those beside the end of the first tile.
    """
    lengths, tile = plan.seqlens, plan.tile_tokens
    classes: dict[tuple[Any, ...], list[int]] = {}
    for b, (q, k) in enumerate(zip(*(seqlens.tolist() for seqlens in lengths), strict=True)):
        kind = q == 0, q == 1, (q > tile) - (q < tile), k == 0, (q > k) - (q < k)
        classes.setdefault(kind, []).append(b)
    chosen = {members[end] for members in classes.values() for end in (0, -1)}
    if classes:
        chosen |= {int(seqlens.argmax()) for seqlens in lengths}
    return [
        (b, row)
        for b in sorted(chosen)
        for row in sorted({0, tile - 1, tile, int(lengths.q[b]) // 2, int(lengths.q[b]) - 1})
        if 0 <= row < lengths.q[b]
    ]


def verify(
    plan: Plan,
    data: Data,
    out: npt.NDArray[Any],
    lse: npt.NDArray[np.float32],
    options: Mapping[str, Any] = {},
) -> Verification:
    """Compare sampled rows of a run with the float64 reference.

    Parameters
    ----------
    plan, data
        What was run.
    out : ndarray, (total_q, num_heads_q, head_dim_v)
    lse : float32 ndarray, (num_heads_q, total_q)
    options
        Of the run; arrays on the host.

    Returns
    -------
    Verification
    """
    cu_seqlens_q, cu_seqlens_k = Lengths(*plan.seqlens).cu_seqlens
    used = {"seqused_k": plan.seqlens.k} if plan.page_size else {}
    rows = sampled_rows(plan)
    return compare(
        (out, lse),
        data.q,
        data.k,
        data.v,
        cu_seqlens_q,
        None if plan.page_size else cu_seqlens_k,
        dtype=plan.dtype,
        rows=rows,
        window=plan.window,
        **used,
        **options,
    )


def measure(
    plan: Plan,
    data: Data,
    machine: Machine,
    *,
    iterations: int,
    warmup: int,
    verified: bool,
    command: str,
    options: Mapping[str, Any] = {},
    peer: Callable[..., Peer] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Result:
    """Verify, warm up, and time `plan.run` on the given data.

    Parameters
    ----------
    plan, data
        What to run.
    machine : Machine
        Where to run it.
    iterations : int
        Timed runs, at least 1.
    warmup : int
        Untimed runs before them; the verified run is one of them.
    verified : bool
        Compare sampled rows with the reference first.
    command : str
        Recorded in the result.
    options
        Of the runs; arrays on the host.
    peer : callable, optional
        Makes a Peer from plan, q, k and v, to be timed in turns with ours.
    progress : callable
        Called with what comes next, before every run.

    Returns
    -------
    Result
    """
    inputs = [machine.put(x) for x in data]
    given = {k: machine.put(x) if isinstance(x, np.ndarray) else x for k, x in options.items()}
    out = machine.empty(inputs[0], (*data.q.shape[:2], data.v.shape[-1]))
    other = peer(plan, *inputs) if peer else None
    verification = None
    if verified:
        progress(f"{plan.scheduler}: verify")
        _, lse = plan.run(*inputs, out=out, return_lse=True, **given)
        verification = verify(plan, data, machine.get(out), machine.get(lse), options)
    times_ms: list[float] = []
    peer_times_ms: list[float] = []
    for i in range(min(0, verified - warmup), iterations):  # below 0: warming up
        progress(f"{plan.scheduler}: " + (f"run {i + 1} of {iterations}" if i >= 0 else "warm up"))
        times_ms += machine.milliseconds(lambda: plan.run(*inputs, out=out, **given), plan.bytes)
        if other:
            peer_times_ms += machine.milliseconds(other, plan.bytes)
    times_ms = times_ms[-iterations:]
    median_ms = statistics.median(times_ms)
    return Result(
        command=command,
        version=exactile.__version__,
        device=machine.describe(),
        isa=exactile.info()["backends"][plan.backend].get("isa"),
        plan=plan_fields(plan),
        iterations=iterations,
        median_ms=median_ms,
        min_ms=min(times_ms),
        max_ms=max(times_ms),
        spread=(max(times_ms) - min(times_ms)) / median_ms,
        tflops=plan.flops / median_ms / 1e9,
        gbps=plan.bytes / median_ms / 1e6,
        verification=verification,
        peer=_peer_result(
            plan, other, machine, machine.get(out), median_ms, peer_times_ms[-iterations:]
        )
        if other
        else None,
    )


def _peer_result(
    plan: Plan,
    peer: Peer,
    machine: Machine,
    out: npt.NDArray[Any],
    our_ms: float,
    times_ms: list[float],
) -> PeerResult:
    theirs, median_ms = peer().float().cpu().numpy(), statistics.median(times_ms)
    return PeerResult(
        name=peer.name,
        version=peer.version,
        median_ms=median_ms,
        min_ms=min(times_ms),
        max_ms=max(times_ms),
        spread=(max(times_ms) - min(times_ms)) / median_ms,
        tflops=plan.flops / median_ms / 1e9,
        ratio=median_ms / our_ms,
        matmul_tflops=peer.matmul_tflops(plan.dtype, machine),
        max_difference=float(np.abs(widened(out) - theirs).max(initial=0)),
    )
