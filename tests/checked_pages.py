"""Runs with invalid page numbers, in a process of their own, since `EXACTILE_CHECK` is read once.

As a program it prints the outcome of each on the given backend.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from cases import ROOT, Batch, make_batch
from serving import NO_PAGES, SENTINEL, in_pages

DTYPES = {"cpu": "float32", "sycl": "float32", "cuda": "bfloat16"}
AT = 1, 1
"""Where another number stands than that of a page."""


class Outcome(NamedTuple):
    case: str  # "host lengths", "lengths on the GPU", "captured", or a kind of queue
    number: int | None  # that stands in the table; None: all are pages
    error: str  # or empty
    written: bool  # any element of out


def outcomes(backend: str, check: str) -> list[Outcome]:
    """Of a process with EXACTILE_CHECK=`check`."""
    done = subprocess.run(
        [sys.executable, __file__, backend],
        env=os.environ | {"EXACTILE_CHECK": check},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]


def check_outcomes(found: list[Outcome], num_cases: int) -> None:
    """Under EXACTILE_CHECK=1 such numbers are refused, and nothing else is."""
    assert len(found) == num_cases * (1 + len(NO_PAGES))
    for case, number, error, written in found:
        if number is None and case != "captured":
            assert (error, written) == ("", True), case
            continue
        assert not written, (case, number)
        want = "expected a stream that is not captured with EXACTILE_CHECK=1"
        if case != "captured":
            want = "expected block_table of pages from 0 to 7, of which k and v have 8, got "
            want += f"{number} at index {AT}"
        assert error.startswith(f"varlen_prefill: {want}"), (case, number)


# --- the program ----------------------------------------------------------------------------------


def batch_with(number: int | None, dtype: str) -> Batch:
    """Two sequences in 3 and 2 of 8 pages, of a table with numbers of no page behind those."""
    batch = in_pages(make_batch([5, 3], [40, 20], dtype=dtype, causal=True), 16)
    if number is not None:
        batch.serving["block_table"][AT] = number
    return batch


def run(batch: Batch, out: Any, to_numpy: Any, **options: Any) -> tuple[str, bool]:
    """(error, whether `out` was written)."""
    error = ""
    try:
        batch.run(out=out, **options)
    except ValueError as refused:
        error = str(refused)
    return error, bool((to_numpy(out).astype(np.float32) != SENTINEL).any())


def results(backend: str, number: int | None) -> list[tuple[str, str, bool]]:
    """(case, error, whether out was written) for each."""
    batch = batch_with(number, DTYPES[backend])
    out = np.full_like(batch.q, SENTINEL)
    if backend == "cpu":
        return [("host lengths", *run(batch, out, np.asarray))]
    if backend == "sycl":
        return [(case, *run_on_queue(batch, out, case)) for case in ("in_order", "out_of_order")]
    from cuda_device import to_gpu, to_numpy, torch
    from cuda_serving import there

    on = there(batch)
    of_host = run(on, to_gpu(out), to_numpy)
    used = torch.from_numpy(batch.serving["seqused_k"]).cuda()
    lengths = dict(
        cu_q=torch.from_numpy(batch.cu_q).cuda(), serving=on.serving | dict(seqused_k=used)
    )
    of_gpu = run(replace(on, **lengths), to_gpu(out), to_numpy)
    graph, captured = torch.cuda.CUDAGraph(), to_gpu(out)
    with torch.cuda.graph(graph):
        of_graph = run(on, captured, lambda _: out)  # nothing can be copied here
    return [("host lengths", *of_host), ("lengths on the GPU", *of_gpu), ("captured", *of_graph)]


def run_on_queue(batch: Batch, out: np.ndarray, case: str) -> tuple[str, bool]:
    """Of a run on a new queue that has yet to write the table."""
    import dpctl

    from sycl_device import dpnp, get, put

    queue = dpctl.SyclQueue(property="in_order") if case == "in_order" else dpctl.SyclQueue()
    arrays = {name: put(getattr(batch, name), queue) for name in "qkv"}
    result, written = put(out, queue), put(batch.serving["block_table"], queue)
    table = dpnp.zeros_like(written)
    queue.wait()
    busy = dpnp.ones((1 << 22,), dtype="float32", sycl_queue=queue)
    for _ in range(20):
        busy = dpnp.sqrt(busy + 1.0)
    table[:] = written + dpnp.astype(busy[0], "int32") - 1  # busy tends to 1.618...
    on = replace(batch, **arrays, serving=batch.serving | {"block_table": table})
    return run(on, result, lambda x: get(x, np.float32))


def main(backend: str) -> None:
    for number in (None, *NO_PAGES):
        for case, error, written in results(backend, number):
            print(json.dumps(Outcome(case, number, error, written)))


if __name__ == "__main__":
    main(sys.argv[1])
