"""Bench: measures one plan on random data, after comparing sampled rows with the reference.

A rate always comes from the work that exists (`Plan.flops`, `Plan.bytes`), never from nominal lengths.
"""

from __future__ import annotations

import json
import math
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import exactile
from exactile.plan import Plan
from exactile.reference import reference
from exactile.workloads import Lengths

DTYPES = ("float32", "float16", "bfloat16")

_FLOOR = 8 * 2.0**-24
"""Relative error that float32 accumulation may add to any result; see `verify`."""


class Data(NamedTuple):
    """Packed q (total_q, num_heads_q, head_dim), k, v (total_k, num_heads_kv, head_dim or _v)."""

    q: npt.NDArray[Any]
    k: npt.NDArray[Any]
    v: npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is computed, whichever way it is scheduled. The fields are arguments of `plan`."""

    lengths: Lengths
    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    head_dim_v: int
    dtype: str
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    pack_gqa: bool | None = None
    backend: str | None = None
    num_threads: int | None = None

    def plan(self, scheduler: str) -> Plan:
        """The plan of this case under one scheduler; no data is allocated."""
        arguments = {name: value for name, value in vars(self).items() if name != "lengths"}
        return exactile.plan(*self.lengths.cu_seqlens, scheduler=scheduler, **arguments)

    def data(self, seed: int) -> Data:
        """Standard normal q, k and v of this case's dtype."""
        dtype = numpy_dtype(self.dtype)
        rng = np.random.default_rng(seed)
        total_q, total_k = (int(cu_seqlens[-1]) for cu_seqlens in self.lengths.cu_seqlens)
        shapes = (
            (total_q, self.num_heads_q, self.head_dim),
            (total_k, self.num_heads_kv, self.head_dim),
            (total_k, self.num_heads_kv, self.head_dim_v),
        )
        return Data(*(rng.standard_normal(s, np.float32).astype(dtype, copy=False) for s in shapes))


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Sampled rows against the float64 reference."""

    rows: int
    max_error: float
    """Largest |out - reference|."""
    of_tolerance: float
    """Largest error of out or lse as a fraction of its tolerance."""

    @property
    def passed(self) -> bool:
        return self.of_tolerance <= 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured case. Times in milliseconds; spread is (max - min) / median."""

    command: str
    version: str
    device: str
    isa: str | None
    threads: int
    plan: dict[str, Any]
    iterations: int
    median_ms: float
    min_ms: float
    max_ms: float
    spread: float
    tflops: float
    gbps: float
    verification: Verification | None

    def to_json(self) -> str:
        """One line of JSON; a number that is not finite becomes null."""
        fields = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return json.dumps(fields, allow_nan=False)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype called `name`, one of DTYPES.

    Raises
    ------
    ValueError
        There is no such dtype, or it is bfloat16 and ml_dtypes is not installed.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {name!r}")
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ValueError("bfloat16 in numpy needs ml_dtypes: pip install ml_dtypes") from error
    return np.dtype(ml_dtypes.bfloat16)


def plan_fields(case: Case, plan: Plan) -> dict[str, Any]:
    """The case and its plan as plain values, lengths summarised."""
    fields = {name: value for name, value in vars(case).items() if name != "lengths"}
    names = ("scheduler", "backend", "order", "pack_gqa", "block_m", "block_n", "batch", "workers")
    counts = ("launched", "valid", "num_records", "pairs", "flops", "bytes")
    fields |= {name: getattr(plan, name) for name in names + counts}
    for name, seqlens in case.lengths._asdict().items():
        fields[f"total_{name}"] = int(seqlens.sum(dtype=np.int64))
        fields[f"max_seqlen_{name}"] = int(seqlens.max(initial=0))
    return fields


def sampled_rows(lengths: Lengths, block_m: int) -> list[tuple[int, int]]:
    """(sequence, row) pairs that stand for the batch.

    The first and last sequence of every class (no query, one, less than / exactly / more than a
    tile; no key; fewer, as many or more keys than queries) and the longest ones; of each the first,
    middle and last row and those at the border of the first tile.
    """
    classes: dict[tuple[Any, ...], list[int]] = {}
    for b, (q, k) in enumerate(zip(*map(np.ndarray.tolist, lengths), strict=True)):
        tile = (q > block_m) - (q < block_m)
        classes.setdefault((q == 0, q == 1, tile, k == 0, (q > k) - (q < k)), []).append(b)
    chosen = {members[end] for members in classes.values() for end in (0, -1)}
    if classes:
        chosen |= {int(seqlens.argmax()) for seqlens in lengths}
    return [
        (b, row)
        for b in sorted(chosen)
        for row in sorted({0, block_m - 1, block_m, lengths.q[b] // 2, lengths.q[b] - 1})
        if 0 <= row < lengths.q[b]
    ]


def verify(
    case: Case, plan: Plan, data: Data, out: npt.NDArray[Any], lse: npt.NDArray[Any]
) -> Verification:
    """Compare sampled rows of a run with the float64 reference.

    Parameters
    ----------
    case, plan, data
        What was run.
    out : ndarray, (total_q, num_heads_q, head_dim_v)
    lse : float32 ndarray, (num_heads_q, total_q)

    Returns
    -------
    Verification

    Notes
    -----
    The tolerance of a row is derived: twice the error of the same computation in plain numpy with
    probabilities and out rounded to the dtype, plus a floor for the order of float32 sums.
    """
    rows = sampled_rows(case.lengths, plan.block_m)
    cu_seqlens = case.lengths.cu_seqlens
    mask = {"causal": case.causal, "window": case.window, "rows": rows}
    want, same_dtype = (
        reference(*data, *cu_seqlens, compute_dtype=dtype, **mask)  # type: ignore[arg-type]
        for dtype in (np.dtype(np.float64), data.q.dtype)
    )
    tokens = [cu_seqlens[0][b] + row for b, row in rows]
    got = out[tokens].astype(np.float64), lse[:, tokens].astype(np.float64)
    error = _row_errors(got, want)
    tolerance = 2 * _row_errors(same_dtype, want) + _FLOOR * _row_scales(want)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_tolerance = np.where(error == 0, 0, error / tolerance)
    return Verification(
        rows=len(rows),
        max_error=float(error[0].max(initial=0)),
        of_tolerance=float(of_tolerance.max(initial=0)),
    )


def _row_errors(got: tuple[Any, Any], want: tuple[Any, Any]) -> npt.NDArray[np.float64]:
    """Largest difference of out and of lse in each row, (2, rows); equal infinities differ by 0."""
    with np.errstate(invalid="ignore"):
        out, lse = (np.where(x == y, 0, np.abs(x - y)) for x, y in zip(got, want, strict=True))
    return np.stack([out.max(axis=(1, 2), initial=0), lse.max(axis=0, initial=0)])


def _row_scales(want: tuple[Any, Any]) -> npt.NDArray[np.float64]:
    """Magnitude of out and of lse in each row, (2, rows)."""
    out, lse = want
    lse = np.where(np.isfinite(lse), np.abs(lse), 0)
    return np.stack([np.abs(out).max(axis=(1, 2), initial=0), lse.max(axis=0, initial=1)])


def measure(
    case: Case,
    plan: Plan,
    data: Data,
    *,
    iterations: int,
    warmup: int,
    verified: bool,
    command: str,
    progress: Callable[[str], None] = lambda what: None,
) -> Result:
    """Verify, warm up, and time `plan.run` on the given data.

    Parameters
    ----------
    case, plan, data
        What to run.
    iterations : int
        Timed runs, at least 1.
    warmup : int
        Untimed runs before them; the verified run is one of them.
    verified : bool
        Compare sampled rows with the reference first.
    command : str
        Recorded in the result.
    progress : callable
        Told what comes next, before every run.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        iterations or warmup is out of range, or the plan cannot run.
    """
    if iterations < 1 or warmup < 0:
        raise ValueError(
            f"bench: expected iterations >= 1, warmup >= 0, got {iterations} and {warmup}"
        )
    out = np.empty((*data.q.shape[:2], data.v.shape[2]), data.q.dtype)
    verification = None
    if verified:
        progress("verify")
        _, lse = plan.run(*data, out=out, return_lse=True)
        verification = verify(case, plan, data, out, lse)
    times_ms = []
    for i in range(verified - max(warmup, verified), iterations):  # below 0: warming up
        progress(f"run {i + 1}/{iterations}" if i >= 0 else "warm up")
        start_ns = time.perf_counter_ns()
        plan.run(*data, out=out)
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
    times_ms = times_ms[-iterations:]
    median_ms = statistics.median(times_ms)
    backend = exactile.info()["backends"][plan.backend]
    return Result(
        command=command,
        version=exactile.__version__,
        device=device_name(),
        isa=backend["isa"],
        threads=case.num_threads or exactile.get_num_threads(),
        plan=plan_fields(case, plan),
        iterations=iterations,
        median_ms=median_ms,
        min_ms=min(times_ms),
        max_ms=max(times_ms),
        spread=(max(times_ms) - min(times_ms)) / median_ms,
        tflops=plan.flops / median_ms / 1e9,
        gbps=plan.bytes / median_ms / 1e6,
        verification=verification,
    )


def device_name() -> str:
    """The CPU's model name."""
    try:
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()
