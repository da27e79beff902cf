"""One prefix of many sequences, computed once and merged, beside each sequence on its own.

    python benchmarks/shared_prefix.py [--seconds=S] [--rounds=N]

On the CPU; appends to shared_prefix.jsonl. The same queries and keys four ways, in turns: whole,
with the prefix's keys before each sequence's own; whole, with the prefix's pages in every
sequence's table; shared, planned beforehand as those two are; and of shared the merge alone.
Results are compared first. What is kept of a way is its shortest run, since other work of the
machine only adds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from commit import commit_here

import exactile
from exactile.tools.machines import machine_of

RESULTS = Path(__file__).with_name("shared_prefix.jsonl")
HEADS_Q, HEADS_KV, HEAD_DIM, PAGE = 32, 8, 128, 64
SHAPE = {"num_heads_q": HEADS_Q, "num_heads_kv": HEADS_KV, "head_dim": HEAD_DIM}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
OWN = {"1 new token": (1, 128), "4": (4, 128), "32": (32, 32), "128": (128, 128)}
"""Queries, and keys of its own, of each sequence."""


class Case:
    """A batch, and the ways to compute it."""

    def __init__(self, dtype: str, prefix: int, sequences: int, queries: int, own: int) -> None:
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32).astype(DTYPES[dtype])

        self.q = draw(sequences * queries, HEADS_Q, HEAD_DIM)
        self.prefix = [draw(prefix, HEADS_KV, HEAD_DIM) for _ in range(2)]
        self.own = [draw(sequences * own, HEADS_KV, HEAD_DIM) for _ in range(2)]
        self.packed = [
            np.concatenate([x for i in range(sequences) for x in (p, o[i * own : (i + 1) * own])])
            for p, o in zip(self.prefix, self.own, strict=True)
        ]
        # The prefix's pages, then those of each sequence.
        own_pages = -(-own // PAGE)
        self.pages = [
            np.zeros((prefix // PAGE + sequences * own_pages, PAGE, HEADS_KV, HEAD_DIM), x.dtype)
            for x in self.own
        ]
        for pages, p, o in zip(self.pages, self.prefix, self.own, strict=True):
            pages[: prefix // PAGE] = p.reshape(-1, PAGE, HEADS_KV, HEAD_DIM)
            own_part = pages[prefix // PAGE :].reshape(sequences, -1, HEADS_KV, HEAD_DIM)
            own_part[:, :own] = o.reshape(sequences, own, HEADS_KV, HEAD_DIM)
        first = prefix // PAGE + own_pages * np.arange(sequences)[:, None]
        self.table = np.concatenate(
            [
                np.broadcast_to(np.arange(prefix // PAGE), (sequences, prefix // PAGE)),
                first + np.arange(own_pages),
            ],
            axis=1,
        ).astype(np.int32, order="C")
        lens_q, keys = [queries] * sequences, [prefix + own] * sequences
        shape = SHAPE | {"dtype": dtype}
        self.whole = exactile.plan(seqlens_q=lens_q, seqlens_k=keys, causal=True, **shape)
        self.paged = exactile.plan(
            seqlens_q=lens_q, seqused_k=np.array(keys, np.int32), page_size=PAGE, causal=True,
            **shape,
        )  # fmt: skip
        self.on_prefix = exactile.plan(seqlens_q=[len(self.q)], seqlens_k=[prefix], **shape)
        self.on_own = exactile.plan(
            seqlens_q=lens_q, seqlens_k=[own] * sequences, causal=True, **shape
        )
        self.parts = self._parts()

    def _parts(self) -> list[np.ndarray]:
        shared = self.on_prefix.run(self.q, *self.prefix, return_lse=True)
        return [*shared, *self.on_own.run(self.q, *self.own, return_lse=True)]

    def run_packed(self) -> np.ndarray:
        return self.whole.run(self.q, *self.packed)

    def run_paged(self) -> np.ndarray:
        return self.paged.run(self.q, *self.pages, block_table=self.table)

    def run_shared(self) -> np.ndarray:
        return exactile.merge(*self._parts())

    def run_merge(self) -> np.ndarray:
        return exactile.merge(*self.parts)


def measure(case: Case, seconds: float, rounds: int) -> dict[str, float]:
    """Shortest milliseconds of each way."""
    ways = {
        "packed": case.run_packed,
        "paged": case.run_paged,
        "shared": case.run_shared,
        "merge": case.run_merge,
    }
    results = {name: run().astype(np.float32) for name, run in ways.items()}
    for name, result in results.items():
        if not np.allclose(result, results["packed"], atol=2e-2, rtol=2e-2):
            raise RuntimeError(f"{name} is not what each sequence gives on its own")
    machine = machine_of("cpu")
    best = dict.fromkeys(ways, float("inf"))
    for _, (name, run) in itertools.product(range(rounds), ways.items()):
        best[name] = min(best[name], machine.slice_ms(run, None, seconds))
    return best


def main() -> int:
    """Measure; print and append."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.2, help="of a slice")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefixes", default="256,1024,4096")
    parser.add_argument("--sequences", default="4,16")
    options = parser.parse_args()
    commit = commit_here()
    about = {"commit": commit, "device": machine_of("cpu").describe()["name"]}
    about |= {"threads": exactile.get_num_threads(), "numpy": np.__version__}
    prefixes, sequences = (
        [int(x) for x in text.split(",")] for text in (options.prefixes, options.sequences)
    )
    with RESULTS.open("a") as lines:
        for (own, (queries, keys)), dtype, prefix, count in itertools.product(
            OWN.items(), DTYPES, prefixes, sequences
        ):
            best = measure(
                Case(dtype, prefix, count, queries, keys), options.seconds, options.rounds
            )
            result = {"own": own, "dtype": dtype, "prefix": prefix, "sequences": count}
            result |= {f"{name}_ms": ms for name, ms in best.items()}
            lines.write(json.dumps(result | about) + "\n")
            lines.flush()
            print(
                f"{own:<12}{dtype:<9} prefix {prefix:>5} x {count:>2}: "
                + ", ".join(f"{name} {ms:.2f}" for name, ms in best.items())
                + f" ms; shared {min(best['packed'], best['paged']) / best['shared']:.2f}x"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
