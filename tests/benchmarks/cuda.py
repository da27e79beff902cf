"""Schedulers on a GPU, and FlashAttention-3 in turns with them, workload by workload.

    python tests/benchmarks/cuda.py WORKLOADS.json [--fa3=LIBRARY] [--works=W1,W3] [--out=FILE]

WORKLOADS.json: name -> {"lens": lengths, "hd": head_dim}; 32 query and 8 kv heads, bf16. LIBRARY:
the FlashAttention-3 operators of vllm 0.20 (_vllm_fa3_C) for the installed PyTorch. The card runs
at its power limit, so only what was measured in turns is compared: every variant has a slice of
every round, each round begins with another one. Appends a line per workload and mask to cuda.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import exactile

HEADS_Q, HEADS_KV = 32, 8
VARIANTS = {
    "auto": dict(scheduler="auto"),
    "Individual": dict(scheduler="Individual"),
    "ValidOnlyIndividual": dict(scheduler="ValidOnlyIndividual"),
    "Persistent": dict(scheduler="ValidOnlyPersistent", order="longest_first", pack_gqa=False),
    "Persistent head-major": dict(
        scheduler="ValidOnlyPersistent", order="head_major", pack_gqa=False
    ),
    "Persistent packed": dict(
        scheduler="ValidOnlyPersistent", order="longest_first", pack_gqa=True
    ),
    "Persistent packed head-major": dict(
        scheduler="ValidOnlyPersistent", order="head_major", pack_gqa=True
    ),
}


def event_median_ms(run: Callable[[], object], seconds: float) -> float:
    """Median time of a launch by events, the host far enough ahead not to be seen."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    count = int(min(200, max(5, seconds * 1e3 / max(start.elapsed_time(end), 1e-3))))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    torch.cuda._sleep(int(100e-6 * count * 1.8e9))
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def fa3_run(q, k, v, cu, longest, causal) -> Callable[[], torch.Tensor]:
    out, scale = torch.empty_like(q), q.shape[2] ** -0.5
    before = [q, k, v, None, None, None, out, cu, cu, None, None, None, longest, longest]
    after = [None] * 9 + [scale, causal, -1, -1, 0.0, True, None, 1, None, 0, None, 1, 0, None]

    def run() -> torch.Tensor:
        torch.ops._vllm_fa3_C.fwd(*before, *after)
        return out

    return run


def runs_of(work, causal, with_fa3):
    """Variant -> (callable that returns out, work-groups launched)."""
    lens, head_dim = work["lens"], work["hd"]
    generator = torch.Generator(device="cuda").manual_seed(0)
    q, k, v = (
        torch.randn(
            sum(lens), heads, head_dim, device="cuda", dtype=torch.bfloat16, generator=generator
        )
        for heads in (HEADS_Q, HEADS_KV, HEADS_KV)
    )
    runs, flops = {}, 0
    for name, options in VARIANTS.items():
        plan = exactile.plan(
            seqlens_q=lens,
            num_heads_q=HEADS_Q,
            num_heads_kv=HEADS_KV,
            head_dim=head_dim,
            dtype="bfloat16",
            causal=causal,
            backend="cuda",
            **options,
        )
        out, flops = torch.full_like(q, float("nan")), plan.flops
        runs[name] = (lambda plan=plan, out=out: plan.run(q, k, v, out=out)), plan
    if with_fa3:
        cu = torch.tensor([0, *torch.tensor(lens).cumsum(0)], dtype=torch.int32, device="cuda")
        runs["fa3"] = fa3_run(q, k, v, cu, max(lens), causal), None
    return runs, flops


def measure(name, work, causal, with_fa3, rounds, seconds):
    runs, flops = runs_of(work, causal, with_fa3)
    outs = {variant: run().clone() for variant, (run, _) in runs.items()}
    for variant, out in outs.items():
        same = torch.equal(out, outs["auto"])
        close = torch.allclose(out.float(), outs["auto"].float(), atol=2e-2, rtol=2e-2)
        if not (same or (variant == "fa3" and close)):
            raise SystemExit(f"{name} {variant}: differs from auto")
    times = {variant: [] for variant in runs}
    for i in range(rounds):
        names = list(runs)
        first = i * len(names) // rounds
        for variant in names[first:] + names[:first]:
            times[variant].append(event_median_ms(runs[variant][0], seconds))
    tflops = {variant: [flops / ms / 1e9 for ms in t] for variant, t in times.items()}
    mean = {variant: statistics.mean(t) for variant, t in tflops.items()}
    auto = runs["auto"][1]
    return {
        "work": name,
        "causal": causal,
        "tflops": {v: [round(x, 1) for x in t] for v, t in tflops.items()},
        "ratio_to_fa3": {v: round(t / mean["fa3"], 3) for v, t in mean.items()} if with_fa3 else {},
        "launched": {v: plan.launched for v, (_, plan) in runs.items() if plan},
        "auto": f"{auto.scheduler}, {auto.order}{', packed' if auto.pack_gqa else ''}",
        "mean": {v: round(t, 1) for v, t in mean.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads")
    parser.add_argument("--fa3")
    parser.add_argument("--works")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.12)
    parser.add_argument("--commit", default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cuda.jsonl"))
    args = parser.parse_args()
    commit = (
        args.commit
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    if args.fa3:
        torch.ops.load_library(args.fa3)
    works = json.loads(Path(args.workloads).read_text())
    for name in args.works.split(",") if args.works else works:
        for causal in (False, True):
            row = measure(name, works[name], causal, bool(args.fa3), args.rounds, args.seconds)
            mean = row.pop("mean")
            row |= {
                "commit": commit,
                "command": "python tests/benchmarks/cuda.py " + " ".join(sys.argv[1:]),
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
            }
            with args.out.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(name, "causal" if causal else "full  ", mean, "auto:", row["auto"], flush=True)


if __name__ == "__main__":
    main()
