"""Serving on a GPU, ours and FlashAttention-3 in turns: cached prefixes, decode steps, pages.

    python benchmarks/cuda_serving.py [--fa3=LIBRARY] [--works=S3,S8] [--rounds=5] [--seconds=0.05]

LIBRARY as benchmarks/cuda.py takes it, with its rules: every variant has a slice of every round, in
an order that changes; the first does not count. Ours has packed keys ("contiguous"), pages of
several sizes, whose numbers are shuffled, and what a workload adds (sinks, a soft cap). FA3 has
packed keys and the same pages; the best of its settings counts: one split, or as many as it likes.
Results are compared with each other first. Prints a table, and with --out appends a JSON line per
workload.

Rates: visible (query, key) pairs for TFLOP/s; each row of Q, K, V and out once for TB/s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commit import commit_here

import exactile
from exactile.tools.machines import Gpu

Run = Callable[[], torch.Tensor]


@dataclass
class Work:
    """Sequences of `new` tokens behind `cached` ones, causal."""

    about: str
    new: list[int]
    cached: list[int]
    heads: tuple[int, int] = (32, 8)
    head_dim: int = 128
    window: tuple[int, int] = (-1, -1)
    pages: tuple[int, ...] = (16, 64)
    options: dict[str, Any] = field(default_factory=dict)  # of a run; also measured without

    @property
    def keys(self) -> list[int]:
        return [new + cached for new, cached in zip(self.new, self.cached, strict=True)]


_draw = random.Random(0)
WORKS = {
    "S1": Work("8 x 2,048 over 16,384", [2048] * 8, [16384] * 8, pages=(16, 64, 128, 256)),
    "S2": Work(
        "250 x 1 over 4k to 16k, 6 prefills of 2k to 8k",
        [1] * 250 + [2048, 3000, 4096, 5000, 8192, 2500],
        [_draw.randint(4096, 16384) for _ in range(250)] + [0] * 6,
    ),
    "S3": Work("256 x 1 over 8,191", [1] * 256, [8191] * 256),
    "S4": Work("64 x 128 over 4,096", [128] * 64, [4096] * 64),
    "S5": Work(
        "16 x 8,192, 64/8 heads, head_dim 64, window 128; with sinks",
        [8192] * 16,
        [0] * 16,
        heads=(64, 8),
        head_dim=64,
        window=(127, 0),
        options={"sinks": True},
    ),
    "S6": Work(
        "16 x 4,096, 32/16 heads, head_dim 256; with softcap 50",
        [4096] * 16,
        [0] * 16,
        heads=(32, 16),
        head_dim=256,
        pages=(),
        options={"softcap": 50.0},
    ),
    "S7": Work("1 x 4,096 over 131,072", [4096], [131072]),
    "S8": Work("16 x 17 over 8,192", [17] * 16, [8192] * 16),
    "S9": Work("1 x 1 over 131,072", [1], [131072]),
    "S10": Work("16 x 1 over 16,384", [1] * 16, [16384] * 16),
}


class Batch:
    """The arrays of a workload, and everything that is measured on it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.generator = torch.Generator(device="cuda").manual_seed(0)
        self.cu_q, self.cu_k = (np.cumsum([0, *x]).tolist() for x in (work.new, work.keys))
        heads_q, heads_kv = work.heads
        self.q = self.random(self.cu_q[-1], heads_q, work.head_dim)
        self.k, self.v = (self.random(self.cu_k[-1], heads_kv, work.head_dim) for _ in range(2))
        options = dict(work.options)
        if "sinks" in options:
            options["sinks"] = torch.randn(heads_q, device="cuda", generator=self.generator)
        self.options = options

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, generator=self.generator)

    def plan(self, page_size: int | None = None) -> exactile.Plan:
        work = self.work
        keys: dict[str, Any] = {"cu_seqlens_k": self.cu_k}
        if page_size:
            keys = {"seqused_k": work.keys, "page_size": page_size}
        return exactile.plan(
            self.cu_q,
            num_heads_q=work.heads[0],
            num_heads_kv=work.heads[1],
            head_dim=work.head_dim,
            dtype="bfloat16",
            causal=True,
            window=work.window,
            backend="cuda",
            **keys,
        )

    def in_pages(self, page_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(k, v, block_table): the same keys in shuffled pages."""
        counts = [-(-n // page_size) for n in self.work.keys]
        pages = torch.randperm(sum(counts), device="cuda", generator=self.generator).int()
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32, device="cuda")
        paged = []
        for x in (self.k, self.v):
            made = x.new_zeros(sum(counts), page_size, *x.shape[1:])
            flat, at = made.flatten(0, 1), 0
            for b, (count, n) in enumerate(zip(counts, self.work.keys, strict=True)):
                table[b, :count] = pages[at : at + count]
                rows = (
                    table[b, :count, None].long() * page_size
                    + torch.arange(page_size, device="cuda")
                ).flatten()[:n]
                flat[rows] = x[self.cu_k[b] : self.cu_k[b + 1]]
                at += count
            paged.append(made)
        return paged[0], paged[1], table

    def ours(self, page_size: int | None = None, options: dict[str, Any] | None = None) -> Run:
        plan, out, options = self.plan(page_size), torch.empty_like(self.q), options or {}
        k, v = self.k, self.v
        if page_size:
            k, v, table = self.in_pages(page_size)
            options = options | {"block_table": table}
        return lambda: plan.run(self.q, k, v, out=out, **options)

    def fa3(self, splits: int, page_size: int | None, options: dict[str, Any]) -> Run:
        operator = torch.ops._vllm_fa3_C.fwd
        out, on = torch.empty_like(self.q), {"dtype": torch.int32, "device": "cuda"}
        cu_q, cu_k, used = (torch.tensor(x, **on) for x in (self.cu_q, self.cu_k, self.work.keys))
        k, v, table, longest = self.k, self.v, None, (max(self.work.new), max(self.work.keys))
        if page_size:
            k, v, table = self.in_pages(page_size)
            cu_k = None
        sinks = options.get("sinks")
        arguments = [self.q, k, v, None, None, None, out, cu_q, cu_k, None, None]
        arguments += [used if page_size else None, *longest, table] + [None] * 8
        arguments += [self.work.head_dim**-0.5, True, *self.work.window]
        arguments += [options.get("softcap", 0.0), True, None, splits, None, 0]
        arguments += [None if sinks is None else sinks.bfloat16(), 1, 0, None]

        def run() -> torch.Tensor:
            operator(*arguments)
            return out

        return run

    def variants(self, fa3: bool) -> dict[str, Run]:
        found = {"contiguous": self.ours()}
        if self.options:
            found[f"with {' and '.join(self.options)}"] = self.ours(options=self.options)
        for size in self.work.pages:
            found[f"pages of {size}"] = self.ours(size)
        if fa3:
            cases: list[tuple[str, int | None, dict[str, Any]]] = [("", None, {})]
            cases += [(f" with {name}", None, {name: x}) for name, x in self.options.items()]
            cases += [(f" pages of {size}", size, {}) for size in self.work.pages]
            for (name, size, options), splits in itertools.product(cases, (1, 0)):
                run = self.fa3(splits, size, options)
                try:
                    run()
                except RuntimeError as error:
                    print(f"FA3{name}: {str(error).splitlines()[0]}")
                    continue
                found[f"FA3{name}, {splits or 'its'} splits"] = run
        return found


def check(variants: dict[str, Run]) -> None:
    """Variants without options of a run agree with the first, and those with them with FA3's."""
    kinds: dict[str, torch.Tensor] = {}
    for name, run in variants.items():
        kind = name.partition("with ")[2].partition(",")[0]
        out = run().float()
        want = kinds.setdefault(kind, out.clone())
        if not torch.allclose(out, want, atol=2e-2, rtol=2e-2):
            raise SystemExit(f"{name}: differs by {float((out - want).abs().max()):.3g}")


def measure(work: Work, args: argparse.Namespace, gpu: Gpu) -> dict[str, Any]:
    batch = Batch(work)
    variants = batch.variants(bool(args.fa3))
    check(variants)
    plan, names = batch.plan(), list(variants)
    ms: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-1, args.rounds):  # below 0: warming up
        for name in random.Random(i).sample(names, len(names)):
            found = gpu.slice_ms(variants[name], plan.bytes, args.seconds)
            if i >= 0:
                ms[name].append(found)
    if fa3 := [name for name in names if name.startswith("FA3, ")]:
        best = min(fa3, key=lambda name: statistics.median(ms[name]))
        ms["FA3"] = ms[best]
    to = {
        name: {other: _ratio(ms[other], of) for other in ("contiguous", "FA3") if other in ms}
        for name, of in ms.items()
    }
    return {
        "about": work.about,
        "flops": plan.flops,
        "bytes": plan.bytes,
        "num_splits": plan.num_splits,
        "ms": {name: [round(x, 4) for x in of] for name, of in ms.items()},
        "median_ms": {name: round(statistics.median(of), 4) for name, of in ms.items()},
        "speed_to": to,
    }


def _ratio(other: list[float], of: list[float]) -> float:
    return round(statistics.median(x / y for x, y in zip(other, of, strict=True)), 3)


def table(name: str, row: dict[str, Any]) -> None:
    for variant, ms in row["median_ms"].items():
        to = row["speed_to"][variant]
        rates = f"{row['flops'] / ms / 1e9:.0f} | {row['bytes'] / ms / 1e9:.2f}"
        beside = f"{to['contiguous']:.3f} | {to.get('FA3', '')}"
        print(f"| {name} | {variant} | {ms * 1e3:.0f} | {rates} | {beside} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fa3", metavar="LIBRARY")
    parser.add_argument("--works", help="some of them, as in S1,S3", metavar="NAMES")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a slice")
    parser.add_argument("--commit", help="default: git's")
    parser.add_argument("--out", type=Path, help="append a JSON line per workload", metavar="FILE")
    args = parser.parse_args()
    if args.fa3:
        torch.ops.load_library(args.fa3)
    names = args.works.split(",") if args.works else list(WORKS)
    if unknown := set(names) - set(WORKS):
        parser.error(f"--works: expected some of {', '.join(WORKS)}, got {', '.join(unknown)}")
    if args.out and not args.commit:
        args.commit = commit_here()
    about = {"commit": args.commit, "device": torch.cuda.get_device_name()}
    gpu = Gpu()
    print(
        "| case | variant | us | TFLOP/s | TB/s | to contiguous | to FA3 |\n|---" + "|---" * 6 + "|"
    )
    for name in names:
        row = measure(WORKS[name], args, gpu)
        table(f"{name}: {row['about']}", row)
        if args.out:
            with args.out.open("a") as lines:
                lines.write(json.dumps({"work": name} | row | about) + "\n")


if __name__ == "__main__":
    main()
