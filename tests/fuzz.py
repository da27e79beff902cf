"""Random ragged cases against float64: on the CPU between guard pages, on a CUDA GPU, with SYCL.

    python tests/fuzz.py --backend=cpu --cases=20000 --seed=1

Prints one line: cases, wrong ones, the worst error as a part of what is tolerated, seconds. The
exit status is 1 when a case is wrong, and what repeats it and the case itself are printed first.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import mmap
import multiprocessing
import os
import sys
import time
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import numpy as np

import exactile
from cases import DTYPES, Batch
from exactile import _core
from exactile._arrays import storage
from exactile.tools.tolerance import judge
from fuzz_cases import (
    Case,
    Data,
    draw_case,
    make_data,
    place,
    reference,
    sees_none,
    strides,
)
from serving import counted, lengths, tokens

CANARY = 0x5B


class Arena:
    """Memory between two inaccessible pages; an array lies at its begin or its end."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self._map = mmap.mmap(-1, size + 2 * page)
        self.bytes = np.frombuffer(self._map, np.uint8)[page:-page]
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (self.bytes.ctypes.data - page, self.bytes.ctypes.data + size):
            if libc.mprotect(ctypes.c_void_p(guard), page, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def place(self, elements: int, dtype: Any, at_end: bool) -> np.ndarray:
        size = elements * np.dtype(dtype).itemsize
        at = self.bytes.size - size if at_end else 0
        return self.bytes[at : at + size].view(dtype)


class OnCpu:
    """Runs cases on the CPU backend, each array between guard pages."""

    exact = True  # what a row does not see changes no bit of it

    def __init__(self) -> None:
        self.arenas = {name: Arena(64 << 20) for name in ("q", "k", "v", "out", "lse")}

    def array(self, name: str, shape: tuple[int, ...], layout: str, dtype: Any, rng: Any):
        """(the memory that the array spans, the array)."""
        in_elements = strides(layout, *shape)
        steps = [n * step for n, step in zip(shape, in_elements, strict=True)]
        spans = [step - step // n if n else 0 for n, step in zip(shape, steps, strict=True)]
        first = -sum(span for span in spans if span < 0)
        span = first + sum(span for span in spans if span > 0) + 1
        memory = self.arenas[name].place(span, dtype, rng.random() < 0.5)
        size = memory.itemsize
        in_bytes = [step * size for step in in_elements]
        return memory, np.lib.stride_tricks.as_strided(memory[first:], shape, in_bytes)

    def inputs(self, case: Case, batch: Batch, rng: Any) -> list[np.ndarray]:
        """q, k and v of the batch in the case's layouts, with NaN between."""
        shapes = {name: getattr(batch, name).shape for name in "qkv"}
        together = case.serving.get("side by side", False)
        if together:
            del shapes["v"]
            shapes["k"] = (*batch.k.shape[:-1], sum(case.head_dims))
        arrays = []
        for (name, shape), layout in zip(shapes.items(), case.layouts, strict=False):
            memory, array = self.array(name, shape, layout, batch.q.dtype, rng)
            memory[:] = np.nan
            arrays.append(array)
        if together:
            key, both = case.head_dims[0], arrays.pop()
            arrays += [both[..., :key], both[..., key:]]
        for array, x in zip(arrays, (batch.q, batch.k, batch.v), strict=True):
            array[...] = x
        return arrays

    def run(self, case: Case, inputs: list[np.ndarray], options: dict[str, Any]):
        """(out, lse). AssertionError: memory beside them was written."""
        rng = np.random.default_rng((*case.seed, 2))
        batch = place(case, inputs)
        arrays = self.inputs(case, batch, rng)
        total_q, heads = batch.q.shape[:2]
        out_shape, lse_shape = (total_q, heads, case.head_dims[1]), (heads, total_q, 1)
        written = {
            "out": self.array("out", out_shape, case.layouts[3], inputs[0].dtype, rng),
            "lse": self.array("lse", lse_shape, "dense", np.float32, rng),
        }
        around = {name: self._around(name, memory) for name, (memory, _) in written.items()}
        for window in around.values():
            window[:] = CANARY
        (_, out), (_, lse) = written.values()
        core = plan(case, batch, "cpu", options)._core
        core.run(*(storage(x) for x in (*arrays, out)), lse[..., 0], run_options(case, batch))
        results = counted(batch, (out, lse[..., 0]))
        rows = tokens(*lengths(batch)[:2])
        for name, array, where in (("out", out, rows), ("lse", lse, (slice(None), rows))):
            array[where] = np.full(array.itemsize, CANARY, np.uint8).view(array.dtype)
            assert (around[name] == CANARY).all(), (
                f"memory beside what counts of {name} was written"
            )
        return results

    def _around(self, name: str, memory: np.ndarray) -> np.ndarray:
        """The bytes of an array, and a page on each side as far as the arena goes."""
        arena = self.arenas[name].bytes
        begin = memory.ctypes.data - arena.ctypes.data
        page = mmap.PAGESIZE
        return arena[max(0, begin - page) : begin + memory.nbytes + page]

    def reference(self, case: Case, data: Data, dtype: str):
        return host_reference(case, data, dtype)


@np.errstate(over="ignore")  # of sinks far above all scores
def host_reference(case: Case, data: Data, dtype: str):
    if dtype == "float64":
        return reference(case, data, np, partial(np.asarray, dtype=np.float64), lambda x: x)
    narrow = DTYPES[dtype]
    return reference(
        case,
        data,
        np,
        partial(np.asarray, dtype=np.float32),
        lambda x: x.astype(narrow).astype(np.float32),
    )


class OnSycl:
    """Runs cases with the portable kernel on the default SYCL device."""

    exact = True

    def __init__(self) -> None:
        os.environ["EXACTILE_SYCL_KERNEL"] = "portable"
        import sycl_device  # loads the SYCL runtime

        self.device = sycl_device

    def array(self, shape: tuple[int, ...], layout: str, dtype: Any):
        """With NaN in its gaps."""
        tokens, heads, head_dim = shape
        if layout == "heads first":
            return self.device.put(np.full((heads, tokens, head_dim), np.nan, dtype)).swapaxes(0, 1)
        gaps = layout == "gaps"
        around = self.device.put(
            np.full((tokens, heads + gaps, head_dim + 32 * gaps), np.nan, dtype)
        )
        return around[:, :heads, :head_dim]

    def run(self, case: Case, inputs: list[np.ndarray], options: dict[str, Any]):
        batch = place(case, inputs)
        arrays = []
        for x, layout in zip((batch.q, batch.k, batch.v), case.layouts, strict=False):
            arrays.append(self.array(x.shape, layout, x.dtype))
            arrays[-1][...] = self.device.put(x)
        out = self.array((*batch.q.shape[:2], case.head_dims[1]), case.layouts[3], batch.q.dtype)
        _, lse = plan(case, batch, "sycl", options).run(
            *arrays, out=out, return_lse=True, **run_options(case, batch)
        )
        return counted(
            batch, (self.device.get(out, batch.q.dtype), self.device.get(lse, np.float32))
        )

    def reference(self, case: Case, data: Data, dtype: str):
        return host_reference(case, data, dtype)


class OnCuda:
    """Runs cases on the GPU, the reference too."""

    exact = False  # V may reach rows near those that see it

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def _to_gpu(self, x: np.ndarray):
        if x.dtype.name == "bfloat16":
            bits = self.torch.from_numpy(np.ascontiguousarray(x).view(np.int16))
            return bits.cuda().view(self.torch.bfloat16)
        return self.torch.from_numpy(np.ascontiguousarray(x)).cuda()

    def array(self, shape: tuple[int, ...], layout: str, dtype: Any):
        steps = strides(layout, *shape)
        spans = [(n - 1) * step for n, step in zip(shape, steps, strict=True) if n]
        memory = self.torch.full((sum(spans) + 1,), float("nan"), dtype=dtype, device="cuda")
        return memory.as_strided(shape, steps)

    def run(self, case: Case, inputs: list[np.ndarray], options: dict[str, Any]):
        batch = place(case, inputs)
        dtype = getattr(self.torch, case.dtype)
        arrays = []
        for x, layout in zip((batch.q, batch.k, batch.v), case.layouts, strict=False):
            arrays.append(self.array(x.shape, layout, dtype))
            arrays[-1].copy_(self._to_gpu(x))
        out = self.array((*batch.q.shape[:2], case.head_dims[1]), case.layouts[3], dtype)
        given = {
            name: self._to_gpu(x) if isinstance(x, np.ndarray) else x
            for name, x in run_options(case, batch).items()
        }
        _, lse = plan(case, batch, "cuda", options).run(*arrays, out=out, return_lse=True, **given)
        return counted(batch, (out.float().cpu().numpy(), lse.cpu().numpy()))

    def reference(self, case: Case, data: Data, dtype: str):
        torch = self.torch
        wide = torch.float64 if dtype == "float64" else torch.float32
        narrow = getattr(torch, dtype)
        out, lse = reference(
            case,
            data,
            torch,
            lambda x: self._to_gpu(x).to(wide),
            lambda x: x.to(narrow).to(wide),
        )
        return out.cpu().numpy(), lse.cpu().numpy()


def plan(case: Case, batch: Batch, backend: str, options: dict[str, Any]) -> exactile.Plan:
    used = {name: x for name, x in batch.serving.items() if name.startswith("seqused")}
    if "page_size" in case.serving:
        used["page_size"] = case.serving["page_size"]
    return exactile.plan(
        batch.cu_q,
        batch.cu_k,
        num_heads_q=case.heads[0],
        num_heads_kv=case.heads[1],
        head_dim=case.head_dims[0],
        head_dim_v=case.head_dims[1],
        dtype=case.dtype,
        backend=backend,
        **used,
        **case.mask,
        **options,
    )


def run_options(case: Case, batch: Batch) -> dict[str, Any]:
    """What `Plan.run` takes besides arrays of the batch's shape."""
    of_run = {name: x for name, x in batch.serving.items() if not name.startswith("seqused")}
    return {"softmax_scale": case.softmax_scale} | of_run


def check(case: Case, machine: Any) -> float:
    """Worst error of a case as a part of what is tolerated. AssertionError: what is wrong."""
    data = make_data(case)
    out, lse = machine.run(case, data.poisoned, case.options[0])
    want, want_lse = machine.reference(case, data, "float64")
    same, same_lse = machine.reference(case, data, case.dtype)
    right, right_lse = ~data.not_finite, ~data.nan_lse
    assert np.isnan(lse[data.nan_lse]).all(), "lse of a row that sees NaN is a number"
    wide = out.astype(np.float32)
    assert not np.isfinite(wide[data.not_finite]).any(), "a row that sees Inf or NaN is finite"
    hidden_lse = right_lse & (want_lse == -np.inf)
    if machine.exact or case.poison != "sequence":
        assert (wide.swapaxes(0, 1)[hidden_lse] == 0).all(), "out of a row that sees no key"
    else:  # on CUDA the sequence's V may reach these rows
        right = right & ~sees_none(case)[:, None]
    # What is poisoned has been looked at; what is not is judged row by row.
    judged = np.where(right[..., None], wide, want), np.where(right_lse, lse, want_lse)
    keys = np.repeat(case.lens_k, case.lens_q)
    found = judge(judged, (want, want_lse), (same, same_lse), keys, case.dtype)
    assert found.passed, found
    if machine.exact:
        again, again_lse = machine.run(case, data.clean, case.options[1])
        same_bits = np.ascontiguousarray(again).view(np.uint8) == np.ascontiguousarray(out).view(
            np.uint8
        )
        assert same_bits[right].all(), "another schedule and no poison change bits of out"
        assert (again_lse == lse)[right_lse].all(), "... of lse"
    return found.of_tolerance


def work(backend: str, isa: str | None, seed: int, indices: range, results: Any) -> None:
    """A process: sends (index, error or text) for every case."""
    faulthandler.enable()
    if isa:
        os.environ["EXACTILE_CPU_ISA"] = isa
        assert _core.isa() == isa  # that nothing has looked at the variable before
    machine = {"cpu": OnCpu, "cuda": OnCuda, "sycl": OnSycl}[backend]()
    for index in indices:
        case = draw_case(seed, index, backend)
        try:
            results.send((index, check(case, machine)))
        except Exception as error:
            results.send((index, f"{type(error).__name__}: {error}\n{case}"))
    results.close()


def fuzz(backend: str, isa: str | None, seed: int, indices: range, processes: int):
    """Yields (index, error or text) of every case, in any order."""
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # for numpy's products
    context = multiprocessing.get_context("spawn")
    running = {}
    for i in range(processes):
        share = indices[i::processes]
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(backend, isa, seed, share, sender))
        process.start()
        sender.close()
        running[receiver] = (process, iter(share))
    while running:
        for receiver in wait(list(running)):
            process, left = running[receiver]
            try:
                yield receiver.recv()
                next(left)
            except EOFError:
                process.join()
                del running[receiver]
                for index in left:  # the process died at the first of them
                    yield index, f"exit status {process.exitcode}"
                    break


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["cpu", "cuda", "sycl"], default="cpu")
    parser.add_argument("--cases", type=int, default=1000, help="of all instruction sets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--isa", help="instead of every instruction set that runs here")
    parser.add_argument("--processes", type=int, help="default: one for each core; 4 on a GPU")
    args = parser.parse_args()
    available = exactile.info()["backends"]["cpu"]
    isas: list[str | None] = [None]
    if args.backend == "cpu":
        isas = [args.isa] if args.isa else available["isas"]
    processes = args.processes or (4 if args.backend == "cuda" else len(os.sched_getaffinity(0)))
    start, done, wrong, worst = time.perf_counter(), 0, 0, 0.0
    for i, isa in enumerate(isas):
        indices = range(args.first, args.first + args.cases)[i :: len(isas)]
        for index, result in fuzz(args.backend, isa, args.seed, indices, processes):
            done += 1
            if isinstance(result, float):
                worst = max(worst, result)
                continue
            wrong += 1
            command = f"--backend={args.backend} --seed={args.seed} --first={index} --cases=1"
            print(f"python tests/fuzz.py {command}" + (f" --isa={isa}" if isa else ""))
            print(result, flush=True)
    seconds = time.perf_counter() - start
    print(
        f"{args.backend}: {done} cases, {wrong} wrong, worst error {worst:.2f} of what is "
        f"tolerated, {seconds:.0f} s"
    )
    return int(wrong > 0 or done < args.cases)


if __name__ == "__main__":
    sys.exit(main())
