"""The sycl backend on the default SYCL device beside our own CPU backend; appends to sycl.jsonl.

    python benchmarks/sycl.py [ITERATIONS]

Both are verified, then timed in turns on the same data in one process. Then one kernel is compiled
into an empty cache, and reloaded from it by another process. Nothing else should run meanwhile.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from commit import commit_here

import exactile
from exactile.tools.bench import plan_fields, random_data, verify
from exactile.tools.machines import machine_of

RESULTS = Path(__file__).with_name("sycl.jsonl")
HEADS = {"num_heads_q": 8, "num_heads_kv": 2, "head_dim": 128}
WORKLOADS = {
    "2048 + 7 short": [2048, 32, 32, 96, 320, 672, 32, 160],
    "1 x 4096": [4096],
    "512 x 34": [34] * 512,
}

KERNEL = """
import json, time
from exactile import _core, _sycl, plan
queue = _sycl.default_queue()
core = plan([0, 1], num_heads_q=1, num_heads_kv=1, head_dim=128, dtype="bfloat16",
            scheduler="ValidOnlyPersistent", backend="sycl")._core
*_, registers, source, name_expression = _core.sycl_kernel(core)
_sycl._runtime = _sycl.runtime()._replace(wheel="")
start = time.perf_counter()
origin = _sycl.find_spirv(queue, source, name_expression)[0]
found = time.perf_counter()
_sycl._load(queue, source, name_expression, registers)
end = time.perf_counter()
print(json.dumps({"origin": origin, "find_s": found - start, "load_s": end - found}))
"""


def compare(lengths: list[int], dtype: str, causal: bool, iterations: int) -> dict:
    """Both backends in turns; milliseconds and rates."""
    plans = {
        backend: exactile.plan(
            seqlens_q=lengths, dtype=dtype, causal=causal, backend=backend, **HEADS
        )
        for backend in ("sycl", "cpu")
    }
    data = random_data(plans["cpu"], seed=0)
    result = {"plan": plan_fields(plans["sycl"])}
    runs, times_ms = {}, {}
    for backend, plan in plans.items():
        machine = machine_of(backend)
        inputs = [machine.put(x) for x in data]
        out = machine.empty(inputs[0], data.q.shape)
        _, lse = plan.run(*inputs, out=out, return_lse=True)
        checked = verify(plan, data, machine.get(out), machine.get(lse))
        if not checked.passed:
            raise RuntimeError(f"{backend}: {checked}")
        result |= {f"{backend}_device": machine.describe(), f"{backend}_error": checked.max_error}
        runs[backend] = lambda m=machine, p=plan, i=inputs, o=out: m.milliseconds(
            lambda: p.run(*i, out=o), p.bytes
        )
        times_ms[backend] = []
    for _, backend in itertools.product(range(iterations), plans):
        times_ms[backend] += runs[backend]()
    for backend, times in times_ms.items():
        median_ms = statistics.median(times)
        result |= {
            f"{backend}_ms": median_ms,
            f"{backend}_spread": (max(times) - min(times)) / median_ms,
            f"{backend}_tflops": plans[backend].flops / median_ms / 1e9,
        }
    return result | {"iterations": iterations, "ratio": result["cpu_ms"] / result["sycl_ms"]}


def kernel_times(folder: str) -> dict:
    """Seconds to compile or find one kernel, and to load it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        env=os.environ | {"EXACTILE_CACHE_DIR": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main(iterations: int = 7) -> int:
    """Measure; print and append."""
    commit = commit_here()
    about = {
        "commit": commit,
        "command": f"python benchmarks/sycl.py {iterations}",
        "numpy": np.__version__,
    }
    with RESULTS.open("a") as lines:
        for (name, lengths), dtype, causal in itertools.product(
            WORKLOADS.items(), ("float32", "float16", "bfloat16"), (False, True)
        ):
            result = {"workload": name, **about, **compare(lengths, dtype, causal, iterations)}
            lines.write(json.dumps(result) + "\n")
            print(
                f"{name:<15} {dtype:<9} {'causal' if causal else 'full':<7}"
                f"sycl {1000 * result['sycl_tflops']:7.1f}  cpu {1000 * result['cpu_tflops']:7.1f} "
                f"GFLOP/s  {result['ratio']:.2f}x"
            )
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                result = {"workload": "one kernel", **about, **kernel_times(folder)}
                lines.write(json.dumps(result) + "\n")
                print(f"one kernel: {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
