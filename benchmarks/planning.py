"""Microseconds that the planner takes in C++, longest first; appends to planning.jsonl.

python benchmarks/planning.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from commit import commit_here

import exactile
from exactile.tools.machines import processor_name

RESULTS = Path(__file__).with_name("planning.jsonl")


def main() -> None:
    commit = commit_here()
    print("| sequences | tokens | mask | records | median us | min us | ns per record |")
    print("|---|---|---|---|---|---|---|")
    for batch in (128, 1024, 8192, 65536):
        lengths = exactile.workloads.lognormal(batch, mean=128).cu_seqlens[0]
        for causal in (False, True):
            times = []
            for _ in range(101):
                plan = exactile.plan(
                    lengths,
                    num_heads_q=32,
                    num_heads_kv=8,
                    head_dim=128,
                    dtype="bfloat16",
                    causal=causal,
                    scheduler="ValidOnlyPersistent",
                    order="longest_first",
                    pack_gqa=False,
                )
                times.append(plan.planning_us)
            records = plan.num_records
            row = dict(
                commit=commit,
                command="python benchmarks/planning.py",
                device=processor_name(),
                sequences=batch,
                tokens=int(lengths[-1]),
                causal=causal,
                records=records,
                median_us=statistics.median(times),
                min_us=min(times),
            )
            with RESULTS.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(
                f"| {batch:,} | {row['tokens']:,} | {'causal' if causal else 'full'} | {records:,} "
                f"| {row['median_us']:.1f} | {row['min_us']:.1f} "
                f"| {1e3 * row['median_us'] / records:.1f} |"
            )


if __name__ == "__main__":
    main()
