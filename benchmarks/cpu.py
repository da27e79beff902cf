"""Our CPU kernels beside PyTorch's, case by case in one process; appends to cpu.jsonl.

    python benchmarks/cpu.py TRACE.csv [--iterations=7] [other options of `exactile bench`]

TRACE.csv holds prompt lengths in a column `context_tokens` (Azure LLM inference traces 2023,
azure_conv_2023.csv); its first 12 are the first workload. Nothing else should run meanwhile.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from commit import commit_here

from exactile.tools.cli import main

RESULTS = Path(__file__).with_name("cpu.jsonl")
HEADS = ["--num_heads_q=8", "--num_heads_kv=2", "--head_size_vo=128", "--scheduler=auto"]


def workloads(trace: str) -> dict[str, list[str]]:
    return {
        "12 prompts": [f"--trace={trace}", "--batch=12"],
        "2048 + 7 short": ["--seqlens=2048,32,32,96,320,672,32,160"],
        "1 x 4096": ["--seqlens=4096"],
        "512 x 34": ["--seqlens=" + ",".join(["34"] * 512)],
    }


def run(trace: str, options: list[str]) -> int:
    commit = commit_here()
    rows = []
    for (name, lengths), dtype, causal in itertools.product(
        workloads(trace).items(), ("float32", "bfloat16"), (False, True)
    ):
        part = RESULTS.with_suffix(".part")
        arguments = [*lengths, *HEADS, f"--dtype={dtype}", *(["--is_causal"] if causal else [])]
        code = main(
            [
                "bench",
                *arguments,
                "--peers",
                "--backend=cpu",
                "--iterations=7",
                f"--json={part}",
                *options,
            ]
        )
        if code:
            part.unlink(missing_ok=True)
            return code
        result = json.loads(part.read_text())
        part.unlink()
        result["command"] = result["command"].replace(trace, Path(trace).name)
        result["command"] = result["command"].replace(f" --json={part}", "")
        with RESULTS.open("a") as lines:
            lines.write(json.dumps({"workload": name, "commit": commit} | result) + "\n")
        peer, mask = result["peer"], "causal" if causal else "full"
        rows.append(
            f"| {name} | {dtype} {mask} | {1e3 * peer['tflops']:.0f} "
            f"| {1e3 * result['tflops']:.0f} | {peer['ratio']:.2f} "
            f"| {result['tflops'] / peer['matmul_tflops']:.0%} |"
        )
    print("\n| workload | case | torch GFLOP/s | ours | x torch | of torch's matmul rate |")
    print("|---|---|---|---|---|---|", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(run(sys.argv[1], sys.argv[2:]))
