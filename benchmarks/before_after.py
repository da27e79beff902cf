"""Two installations of exactile in turns: is a change slower than what was there before?

    python benchmarks/before_after.py --before=SITE --after=SITE [--backend=cpu|cuda|sycl]

SITE: a folder that holds an installed `exactile` (pip install --target=SITE .). Each installation
lives in a process of its own; the two take turns, slice by slice, in an order that changes, so both
meet the same machine: on a GPU at its power limit, or a CPU with other work, only the ratio of
neighbouring slices holds. Workloads: on a GPU those of workloads.json (as cuda.py), on the CPU
and on the default SYCL device those of the README's table (as cpu.py, without the trace unless
--trace=FILE is given). The ratio is the median of the rounds' ratios, above 1 where `after` is
faster.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RULER = HERE.parent / "python/exactile/tools/machines.py"
"""Times the runs of both installations, whatever is in them."""


def cpu_cases(backend: str, trace: str | None) -> list[dict[str, Any]]:
    lengths = {
        "2048 + 7 short": [2048, 32, 32, 96, 320, 672, 32, 160],
        "1 x 4096": [4096],
        "512 x 34": [34] * 512,
    }
    if trace:
        rows = Path(trace).read_text().splitlines()[1:13]
        lengths = {"12 prompts": [int(row.split(",")[0]) for row in rows]} | lengths
    return [
        dict(backend=backend, name=name, lens=lens, head_dim=128, dtype=dtype, causal=causal)
        for name, lens in lengths.items()
        for dtype in ("float32", "bfloat16")
        for causal in (False, True)
    ]


def cuda_cases(names: list[str] | None) -> list[dict[str, Any]]:
    works = json.loads((HERE / "workloads.json").read_text())
    return [
        dict(
            backend="cuda",
            name=name,
            lens=work["lens"] * work.get("times", 1),
            head_dim=work["head_dim"],
            head_dim_v=work.get("head_dim_v"),
            dtype=work.get("dtype", "bfloat16"),
            causal=causal,
        )
        for name, work in works.items()
        if not names or name in names
        for causal in (False, True)
    ]


# --- in the processes of the installations ------------------------------------------------------


def worker() -> None:
    """Answer lines of JSON: a case makes ready, a number of seconds measures: TFLOP/s."""
    import exactile

    print(json.dumps(str(Path(exactile.__file__).parent)), flush=True)
    slice_of: Callable[[float], float] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, dict):
            slice_of = None
            slice_of = ready(exactile, request)
            print("null", flush=True)
        else:
            assert slice_of is not None
            print(json.dumps(slice_of(request)), flush=True)


def ready(exactile: Any, case: dict[str, Any]) -> Callable[[float], float]:
    heads_q, heads_kv = (32, 8) if case["backend"] == "cuda" else (8, 2)
    plan = exactile.plan(
        seqlens_q=case["lens"],
        num_heads_q=heads_q,
        num_heads_kv=heads_kv,
        head_dim=case["head_dim"],
        head_dim_v=case.get("head_dim_v"),
        dtype=case["dtype"],
        causal=case["causal"],
        backend=case["backend"],
    )
    machine = ruler().machine_of(case["backend"])
    dims = (heads_q, plan.head_dim), (heads_kv, plan.head_dim), (heads_kv, plan.head_dim_v)
    shapes = [(sum(case["lens"]), *shape) for shape in dims]
    if case["backend"] == "cuda":
        inputs = on_gpu(shapes, case["dtype"])
    else:
        inputs = [machine.put(x) for x in on_host(shapes, case["dtype"])]
    out = machine.empty(inputs[0], (*shapes[0][:2], plan.head_dim_v))

    def measure(seconds: float) -> float:
        ms = machine.slice_ms(lambda: plan.run(*inputs, out=out), plan.bytes, seconds)
        return plan.flops / ms / 1e9

    measure(0)
    return measure


def ruler() -> Any:
    """The module RULER."""
    spec = spec_from_file_location("ruler", RULER)
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_gpu(shapes: list[tuple[int, ...]], dtype: str) -> list[Any]:
    import torch

    generator = torch.Generator(device="cuda").manual_seed(0)
    return [
        torch.randn(*shape, device="cuda", dtype=getattr(torch, dtype), generator=generator)
        for shape in shapes
    ]


def on_host(shapes: list[tuple[int, ...]], dtype: str) -> list[Any]:
    """numpy arrays; bfloat16 as uint16 storage, cut off."""
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal(shape, np.float32) for shape in shapes]
    if dtype == "bfloat16":
        return [(x.view(np.uint32) >> 16).astype(np.uint16) for x in drawn]
    return [x.astype(dtype) for x in drawn]


# --- in the process that compares ---------------------------------------------------------------


class Installation:
    """A process in which one installation answers."""

    def __init__(self, site: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env=os.environ | {"PYTHONPATH": str(site.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        where = Path(self._answer())
        if where.parent != site.resolve():
            raise SystemExit(f"expected exactile of {site}, got {where}")

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("an installation's process ended")
        return json.loads(line)

    def ask(self, request: dict[str, Any] | float) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()


def compare(case: dict[str, Any], sides: dict[str, Installation], rounds: int, seconds: float):
    for side in sides.values():
        side.ask(case)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(-1, rounds):  # below 0: warming up
        for name in random.Random(i).sample(list(sides), len(sides)):
            tflops = sides[name].ask(seconds)
            if i >= 0:
                found[name].append(tflops)
    ratios = [a / b for a, b in zip(found["after"], found["before"], strict=True)]
    return {
        "case": {key: case[key] for key in ("name", "dtype", "causal", "backend")},
        "before": round(statistics.median(found["before"]), 4),
        "after": round(statistics.median(found["after"]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of_best": round(max(found["after"]) / max(found["before"]), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--before", type=Path, metavar="SITE")
    parser.add_argument("--after", type=Path, metavar="SITE")
    parser.add_argument("--backend", choices=("cpu", "cuda", "sycl"), default="cuda")
    parser.add_argument("--works", help="CUDA: some of them, as in W1,W3", metavar="NAMES")
    parser.add_argument(
        "--trace", help="CPU, SYCL: lengths of its first 12 prompts", metavar="FILE"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a slice")
    parser.add_argument("--out", type=Path, help="append a JSON line per case", metavar="FILE")
    args = parser.parse_args()
    if args.worker:
        return worker()
    if not args.before or not args.after:
        parser.error("expected --before and --after")
    sides = {"before": Installation(args.before), "after": Installation(args.after)}
    cases = (
        cuda_cases(args.works.split(",") if args.works else None)
        if args.backend == "cuda"
        else cpu_cases(args.backend, args.trace)
    )
    print("| workload | mask | before | after | ratio | of best |\n|---|---|---|---|---|---|")
    for case in cases:
        row = compare(case, sides, args.rounds, args.seconds)
        mask = "causal" if case["causal"] else "full"
        print(
            f"| {case['name']} {case['dtype']} | {mask} | {row['before']:.4g} | {row['after']:.4g} "
            f"| {row['ratio']:.3f} | {row['ratio_of_best']:.3f} |",
            flush=True,
        )
        if args.out:
            with args.out.open("a") as lines:
                lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
