"""Ours on a GPU and FlashAttention-3 in turns, workload by workload: the table of the README.

    python benchmarks/cuda.py --fa3=LIBRARY

LIBRARY: FlashAttention-3's operators as vllm 0.20 builds them (_vllm_fa3_C*.so), for the installed
PyTorch. workloads.json beside this file: name -> lens (`times` over), head_dim, head_dim_v, dtype
(bfloat16); 32 query and 8 kv heads. A workload in float16 is measured beside itself in bfloat16.

The card runs at its power limit, so only what was measured in turns is compared: every variant has
a slice of every round, in an order that changes, since the slice before leaves its mark (3 to 5 %),
and the first round, when the card is still cool, does not count. A ratio is the median of those of
the rounds; spread is (max - min) / median of the rounds. Sampled rows are compared with float64
first, as `exactile bench` does. Appends a line per workload and mask to cuda.jsonl, and prints the
table.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from commit import commit_here

import exactile
from exactile.tools.bench import Data, verify
from exactile.tools.machines import Gpu
from exactile.tools.peers import Fa3, gpu_matmul_tflops

HERE = Path(__file__).parent
HEADS_Q, HEADS_KV = 32, 8
FA3, BFLOAT16 = "fa3", "auto bfloat16"
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


class Work(NamedTuple):
    """A workload under one mask."""

    name: str
    about: str
    lens: list[int]
    head_dim: int
    head_dim_v: int
    dtype: str
    causal: bool


class Variant(NamedTuple):
    run: Callable[[], torch.Tensor]
    plan: exactile.Plan | None


def works_of(path: Path, names: list[str] | None) -> Iterator[Work]:
    """The named workloads of a file, or all, each full and causal."""
    entries = json.loads(path.read_text())
    for name in names or entries:
        if name not in entries:
            raise SystemExit(f"--works: expected some of {', '.join(entries)}, got {name!r}")
        entry = entries[name]
        for causal in (False, True):
            yield Work(
                name=name,
                about=entry["about"],
                lens=entry["lens"] * entry.get("times", 1),
                head_dim=entry["head_dim"],
                head_dim_v=entry.get("head_dim_v", entry["head_dim"]),
                dtype=entry.get("dtype", "bfloat16"),
                causal=causal,
            )


def plan_of(work: Work, **options: Any) -> exactile.Plan:
    return exactile.plan(
        seqlens_q=work.lens,
        num_heads_q=HEADS_Q,
        num_heads_kv=HEADS_KV,
        head_dim=work.head_dim,
        head_dim_v=work.head_dim_v,
        causal=work.causal,
        backend="cuda",
        **({"dtype": work.dtype} | options),
    )


def data_of(work: Work) -> list[torch.Tensor]:
    """q, k and v of the workload's dtype."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    shapes = (HEADS_Q, work.head_dim), (HEADS_KV, work.head_dim), (HEADS_KV, work.head_dim_v)
    dtype = getattr(torch, work.dtype)
    return [
        torch.randn(sum(work.lens), *shape, device="cuda", dtype=dtype, generator=generator)
        for shape in shapes
    ]


def ours(plan: exactile.Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Variant:
    out = q.new_full((*q.shape[:2], v.shape[2]), float("nan"))
    return Variant(lambda: plan.run(q, k, v, out=out), plan)


def variants_of(
    work: Work, data: list[torch.Tensor], names: list[str], fa3: str | None
) -> dict[str, Variant]:
    q, k, v = data
    variants = {name: ours(plan_of(work, **VARIANTS[name]), q, k, v) for name in names}
    if fa3:
        variants[FA3] = Variant(Fa3(plan_of(work), q, k, v, library=fa3), None)
    if work.dtype == "float16":
        plan = plan_of(work, dtype="bfloat16")
        variants[BFLOAT16] = ours(plan, *(x.bfloat16() for x in (q, k, v)))
    return variants


def drop_what_fa3_refuses(variants: dict[str, Variant]) -> str | None:
    """Why FA3 takes no such batch, if it does not."""
    try:
        if FA3 in variants:
            variants[FA3].run()
    except RuntimeError as error:
        del variants[FA3]
        return str(error).splitlines()[0]
    return None


def check(work: Work, data: list[torch.Tensor], variants: dict[str, Variant], gpu: Gpu) -> None:
    """Sampled rows are right; all policies give the same bits, and others nearly the same."""
    plan = variants["auto"].plan
    want, lse = plan.run(*data, return_lse=True)
    found = verify(plan, Data(*map(gpu.get, data)), gpu.get(want), gpu.get(lse))
    if not found.passed:
        raise SystemExit(f"{work.name} auto: {found}")
    for name, variant in variants.items():
        out = variant.run()
        close = torch.allclose(out.float(), want.float(), atol=2e-2, rtol=2e-2)
        if not (torch.equal(out, want) or (name in (FA3, BFLOAT16) and close)):
            raise SystemExit(f"{work.name} {name}: differs from auto")


def spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


def ratios(tflops: dict[str, list[float]], to: str) -> dict[str, dict[str, float]]:
    """Of each of our variants to another one: median of the rounds, and spread."""
    found = {}
    for name in tflops.keys() - {FA3, BFLOAT16} if to in tflops else ():
        of_rounds = [x / y for x, y in zip(tflops[name], tflops[to], strict=True)]
        found[name] = {
            "median": round(statistics.median(of_rounds), 3),
            "spread": round(spread(of_rounds), 3),
        }
    return found


def measure(work: Work, args: argparse.Namespace, gpu: Gpu) -> dict:
    data = data_of(work)
    variants = variants_of(work, data, args.names, args.fa3)
    refused = drop_what_fa3_refuses(variants)
    check(work, data, variants, gpu)
    names, flops = list(variants), variants["auto"].plan.flops
    tflops: dict[str, list[float]] = {name: [] for name in names}
    bytes_of_run = variants["auto"].plan.bytes
    for i in range(-1, args.rounds):  # below 0: warming up
        for name in random.Random(i).sample(names, len(names)):
            ms = gpu.slice_ms(variants[name].run, bytes_of_run, args.seconds)
            if i >= 0:
                tflops[name].append(flops / ms / 1e9)
    auto = variants["auto"].plan
    return {
        "work": work.name,
        "about": work.about,
        "causal": work.causal,
        "dtype": work.dtype,
        "head_dims": [work.head_dim, work.head_dim_v],
        "tflops": {name: [round(x, 1) for x in of_rounds] for name, of_rounds in tflops.items()},
        "median": {name: round(statistics.median(x), 1) for name, x in tflops.items()},
        "spread": {name: round(spread(x), 3) for name, x in tflops.items()},
        "fa3_refused": refused,
        "ratio_to_fa3": ratios(tflops, FA3),
        "ratio_to_bfloat16": ratios(tflops, BFLOAT16),
        "launched": {name: one.plan.launched for name, one in variants.items() if one.plan},
        "auto": auto_is(auto),
    }


def auto_is(plan: exactile.Plan) -> str:
    gqa = ", GQA packed" if plan.pack_gqa else ""
    return (
        f"{plan.scheduler}, {plan.order}{gqa}{', sequences packed' if plan.pack_sequences else ''}"
    )


def table(rows: list[dict]) -> Iterator[str]:
    """Markdown: medians in TFLOP/s, spreads, and what auto is to FA3, or float16 to bfloat16."""
    yield "| workload | mask | FA3 | auto | ratio | to bf16 | auto is |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:

        def rate(name: str, row: dict = row) -> str:
            if name not in row["median"]:
                return "refused" if row["fa3_refused"] else ""
            return f"{row['median'][name]:.1f} ({row['spread'][name]:.1%})"

        def ratio(to: str, row: dict = row) -> str:
            one = row[f"ratio_to_{to}"].get("auto")
            return f"{one['median']:.3f} ({one['spread']:.1%})" if one else ""

        mask = "causal" if row["causal"] else "full"
        cells = [f"{row['work']}: {row['about']}", mask, rate(FA3), rate("auto")]
        yield f"| {' | '.join([*cells, ratio('fa3'), ratio('bfloat16'), row['auto']])} |"


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fa3", metavar="LIBRARY")
    parser.add_argument("--workloads", type=Path, default=HERE / "workloads.json", metavar="FILE")
    parser.add_argument("--works", help="some of them, as in W1,W3", metavar="NAMES")
    parser.add_argument("--variants", help=f"beside auto: of {', '.join(VARIANTS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.12, help="of a slice")
    parser.add_argument("--commit", help="default: git's")
    parser.add_argument("--out", type=Path, default=HERE / "cuda.jsonl", metavar="FILE")
    args = parser.parse_args()
    chosen = VARIANTS if args.variants is None else ["auto", *args.variants.split(",")]
    args.names = [name for name in dict.fromkeys(chosen) if name]
    if unknown := set(args.names) - set(VARIANTS):
        parser.error(f"--variants: expected some of {', '.join(VARIANTS)}, got {unknown}")
    if args.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {args.rounds}")
    return args


def main() -> None:
    args, rows, gpu = parsed_arguments(), [], Gpu()
    works = list(works_of(args.workloads, args.works.split(",") if args.works else None))
    command = "python benchmarks/cuda.py " + " ".join(sys.argv[1:])
    common = {
        "commit": args.commit or commit_here(),
        "command": command.replace(args.fa3, Path(args.fa3).name) if args.fa3 else command,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "matmul_tflops": round(gpu_matmul_tflops("bfloat16", gpu), 1),
    }
    print(
        f"{common['device']}, 8192^3 matrix product {common['matmul_tflops']} TFLOP/s", flush=True
    )
    for work in works:
        row = measure(work, args, gpu)
        rows.append(row)
        with args.out.open("a") as lines:
            lines.write(json.dumps(row | common) + "\n")
        print(work.name, "causal" if work.causal else "full  ", row["median"], flush=True)
    print("", *table(rows), sep="\n")


if __name__ == "__main__":
    main()
