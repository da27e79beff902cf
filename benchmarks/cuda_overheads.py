"""What a GPU run costs besides the kernel: host time, device plans, first calls. Prints JSON lines.

python benchmarks/cuda_overheads.py [--fa3=LIBRARY] [--commit=ID]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

import exactile
from exactile.tools.machines import Gpu
from exactile.tools.peers import Fa3

SHAPE = dict(num_heads_q=32, num_heads_kv=8, head_dim=128, dtype="bfloat16")


def data(lens):
    return [
        torch.randn(sum(lens), heads, 128, device="cuda", dtype=torch.bfloat16)
        for heads in (32, 8, 8)
    ]


def host_us(run, count=2000):
    """Median over 20 batches of the time that the host needs to issue a run."""
    for _ in range(50):
        run()
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count // 20):
            run()
        times.append((time.perf_counter() - start) / (count // 20) * 1e6)
    torch.cuda.synchronize()
    return statistics.median(times)


def host_costs(fa3):
    lens = [16] * 4
    q, k, v = data(lens)
    plan = exactile.plan(seqlens_q=lens, **SHAPE, backend="cuda")
    out = torch.empty_like(q)
    yield {"what": "host us of Plan.run", "us": host_us(lambda: plan.run(q, k, v))}
    yield {"what": "host us of Plan.run(out=)", "us": host_us(lambda: plan.run(q, k, v, out=out))}
    if fa3:
        yield {"what": "host us of FA3", "us": host_us(Fa3(plan, q, k, v, library=fa3))}


def device_plans(gpu):
    """Events around plan() with lengths on the GPU, the host far ahead."""
    for batch, mean in ((256, 512), (8192, 512)):
        cu = exactile.workloads.lognormal(batch, mean=mean).cu_seqlens[0]
        on_gpu, total = torch.from_numpy(cu).cuda(), int(cu[-1])
        for causal in (False, True):
            options = dict(total_q=total, causal=causal, order="longest_first", pack_gqa=False)
            plans = [exactile.plan(on_gpu, **options, **SHAPE) for _ in range(4)]

            def plan_once(on_gpu=on_gpu, plans=plans, options=options):
                plans.append(exactile.plan(on_gpu, **options, **SHAPE))

            times = []
            for _ in range(40):
                (ms,) = gpu.milliseconds(plan_once, None, head_start=1_000_000)
                plans.pop(0)
                times.append(ms * 1e3)
            yield {
                "what": "device plan, events around it",
                "sequences": batch,
                "causal": causal,
                "records": exactile.plan(cu, causal=causal, pack_gqa=False, **SHAPE).num_records,
                "us": statistics.median(times),
                "min_us": min(times),
            }


FIRST_CALL = """
import sys, time, torch, exactile
q = torch.randn(100, 4, 64, device="cuda", dtype=torch.bfloat16)
torch.cuda.synchronize()
options = {"backend": "cuda"}
if sys.argv[1] == "own":
    source = '''
    #include <exactile/scheduler/valid_only.hpp>
    struct Mine : exactile::ValidOnlyIndividual {
      using ValidOnlyIndividual::ValidOnlyIndividual;
    };'''
    options["scheduler"] = exactile.Scheduler("Mine", source=source)
start = time.perf_counter()
exactile.varlen_prefill(q, q, q, [0, 30, 100], **options)
torch.cuda.synchronize()
print((time.perf_counter() - start) * 1e3)
"""


def first_calls():
    for what, which in (
        ("first call, kernel of the wheel", "shipped"),
        ("first call, compiled", "own"),
        ("first call, from the cache directory", "own"),
    ):
        command = [sys.executable, "-c", FIRST_CALL, which]
        env = os.environ | {"EXACTILE_CHECK_SCHEDULER": "0"}  # times the kernel's compiler alone
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            yield {"what": what, "error": done.stderr.splitlines()[-1]}
        else:
            yield {"what": what, "ms": float(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fa3")
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    common = {
        "commit": args.commit,
        "command": "python benchmarks/cuda_overheads.py",
        "device": torch.cuda.get_device_name(),
    }
    for part in (host_costs(args.fa3), device_plans(Gpu()), first_calls()):
        for row in part:
            print(json.dumps(row | common), flush=True)


if __name__ == "__main__":
    main()
