"""Keys in pages beside contiguous ones on the CPU, and a decode step beside the memory's speed.

    python benchmarks/cpu_serving.py [--rounds=9] [--seconds=0.5] [--works=decode] [--out=FILE]

All sides of a case read the same memory, in which a shuffled table finds the pages, and take turns,
slice by slice, in an order that changes; the shortest time of a slice counts, and of all slices.
The ratio is the median of the rounds' ratios to contiguous keys, above 1 where pages are faster.
Copying: numpy, in as many threads as a run has, 512 MiB; what is read and what is written count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from commit import commit_here

import exactile
from exactile.tools.machines import Host
from exactile.tools.reference import to_bfloat16
from exactile.tools.tolerance import compare

HEAD_DIM = 128
PAGE_SIZES = (16, 64, 256)
COPY_BYTES = 512 << 20


def workloads(batch: int, keys: int) -> dict[str, dict[str, Any]]:
    prefill = dict(heads=(8, 2), causal=True)
    return {
        "2048 + 7 short": dict(lens_q=[2048, 32, 32, 96, 320, 672, 32, 160], **prefill),
        "1 x 4096": dict(lens_q=[4096], **prefill),
        "decode": dict(lens_q=[1] * batch, lens_k=[keys] * batch, heads=(32, 4), causal=True),
    }


def draw(shape: tuple[int, ...], dtype: str) -> Any:
    """A million numbers, again and again; bfloat16 as uint16 storage."""
    noise = np.random.default_rng(len(shape)).standard_normal((1 << 20) + 1, np.float32)
    stored = to_bfloat16(noise) if dtype == "bfloat16" else noise.astype(dtype)
    return np.resize(stored, shape)


class Case:
    """q, k and v of a workload, and a run of each side."""

    def __init__(self, work: dict[str, Any], dtype: str) -> None:
        self.work, self.dtype = work, dtype
        lens_q, lens_k = work["lens_q"], work.get("lens_k", work["lens_q"])
        # Every sequence begins with a page: its keys are rounded up to the largest page size.
        self.len_k = np.array(lens_k, np.int32)
        capacity = -(-self.len_k // max(PAGE_SIZES)) * max(PAGE_SIZES)
        self.cu_q, self.cu_k = (np.cumsum([0, *x]).astype(np.int32) for x in (lens_q, capacity))
        heads_q, heads_kv = work["heads"]
        self.q = draw((self.cu_q[-1], heads_q, HEAD_DIM), dtype)
        self.k, self.v = (draw((self.cu_k[-1], heads_kv, HEAD_DIM), dtype) for _ in "kv")
        self.out = Host().empty(self.q, self.q.shape)
        self.bytes = self.q.nbytes + self.out.nbytes
        self.bytes += 2 * int(self.len_k.sum()) * heads_kv * HEAD_DIM * self.k.itemsize
        self.plans = {size: self._plan(size) for size in (0, *PAGE_SIZES)}

    def _plan(self, page_size: int) -> exactile.Plan:
        heads_q, heads_kv = self.work["heads"]
        lengths = {"page_size": page_size} if page_size else {"cu_seqlens_k": self.cu_k}
        return exactile.plan(
            self.cu_q,
            **lengths,
            seqused_k=self.len_k,
            num_heads_q=heads_q,
            num_heads_kv=heads_kv,
            head_dim=HEAD_DIM,
            dtype=self.dtype,
            causal=self.work["causal"],
        )

    def arrays(self, page_size: int) -> tuple[Any, Any, dict[str, Any]]:
        """k, v and the options of a run."""
        if not page_size:
            return self.k, self.v, {}
        k, v = (x.reshape(-1, page_size, *x.shape[1:]) for x in (self.k, self.v))
        pages = np.random.default_rng(1).permutation(len(k)).astype(np.int32)
        starts, columns = self.cu_k[:-1] // page_size, np.diff(self.cu_k).max() // page_size
        table = np.resize(pages, len(pages) + columns)[starts[:, None] + np.arange(columns)]
        return k, v, {"block_table": table}

    def run(self, page_size: int, **more: Any) -> Callable[[], Any]:
        k, v, options = self.arrays(page_size)
        plan = self.plans[page_size]
        return lambda: plan.run(self.q, k, v, out=self.out, **options, **more)

    def verify(self, page_size: int) -> None:
        """Sampled rows against float64."""
        k, v, options = self.arrays(page_size)
        got = self.run(page_size, return_lse=True)()
        rng = np.random.default_rng(2)
        lens_q = np.diff(self.cu_q)
        rows = [(b, int(rng.integers(lens_q[b]))) for b in rng.integers(0, len(lens_q), 16)]
        found = compare(
            *(got, self.q, k, v, self.cu_q, None if page_size else self.cu_k),
            dtype=self.dtype,
            rows=rows,
            causal=self.work["causal"],
            seqused_k=self.len_k,
            **options,
        )
        if not found.passed:
            raise SystemExit(f"pages of {page_size}: {found}")


def copying() -> Callable[[], Any]:
    """A copy of COPY_BYTES in as many threads as a run has."""
    threads = exactile.get_num_threads()
    source = np.ones((threads, COPY_BYTES // threads), np.uint8)
    target = np.zeros_like(source)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.copyto, target, source))


def measure(case: Case, rounds: int, seconds: float, copy: Callable[[], Any]) -> dict[Any, Any]:
    """Milliseconds of each side in each round."""
    sides: dict[Any, Callable[[], Any]] = {size: case.run(size) for size in case.plans}
    sides["copy"] = copy
    times: dict[Any, list[float]] = {side: [] for side in sides}
    host = Host()
    for i in range(rounds):
        for side in random.Random(i).sample(list(sides), len(sides)):
            times[side].append(host.slice_ms(sides[side], None, seconds))
    return times


def report(name: str, case: Case, times: dict[Any, list[float]]) -> dict[str, Any]:
    """A line of the table, and what is stored of it."""
    copy = 2 * COPY_BYTES / min(times.pop("copy")) / 1e6
    rate = {size: case.bytes / min(ms) / 1e6 for size, ms in times.items()}
    work = {size: case.plans[size].flops / min(ms) / 1e6 for size, ms in times.items()}
    ratios = {
        size: statistics.median(a / b for a, b in zip(times[0], ms, strict=True))
        for size, ms in times.items()
    }
    print(
        f"| {name} {case.dtype} | {work[0]:.0f} | {rate[0]:.1f} | {rate[0] / copy:.0%} "
        + "".join(f"| {ratios[size]:.3f} ({rate[size] / copy:.0%}) " for size in PAGE_SIZES)
        + f"| {copy:.1f} |",
        flush=True,
    )
    return {
        "workload": name,
        "dtype": case.dtype,
        "bytes": case.bytes,
        "copy_gb_per_s": round(copy, 2),
        "ms": {str(size): [round(x, 4) for x in ms] for size, ms in times.items()},
        "gflops": round(work[0], 1),
        "gb_per_s": {str(size): round(x, 2) for size, x in rate.items()},
        "ratio_to_contiguous": {str(size): round(x, 3) for size, x in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a slice")
    parser.add_argument("--works", help="some of them, as in decode", metavar="NAMES")
    parser.add_argument("--batch", type=int, default=64, help="of the decode step")
    parser.add_argument("--keys", type=int, default=4096, help="of a sequence of the decode step")
    parser.add_argument("--out", type=Path, help="append a JSON line per case", metavar="FILE")
    args = parser.parse_args()
    copy, works = copying(), workloads(args.batch, args.keys)
    chosen = args.works.split(",") if args.works else list(works)
    print("| case | GFLOP/s | GB/s | of copying ", end="")
    print(*(f"| pages of {size} " for size in PAGE_SIZES), "| copying, GB/s |", sep="")
    print("|---|---|---|---" + "|---" * len(PAGE_SIZES) + "|---|")
    commit = commit_here() if args.out else ""
    for name, dtype in itertools.product(chosen, ("float32", "bfloat16")):
        case = Case(works[name], dtype)
        for page_size in case.plans:
            case.verify(page_size)
        line = report(name, case, measure(case, args.rounds, args.seconds, copy))
        if args.out:
            about = {"commit": commit, "threads": exactile.get_num_threads(), **Host().describe()}
            with args.out.open("a") as lines:
                lines.write(json.dumps(line | about) + "\n")


if __name__ == "__main__":
    main()
