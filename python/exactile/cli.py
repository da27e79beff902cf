"""Command line: `exactile bench` measures, `exactile plan` shows what would be launched.

Options are those of the benchmark of intel/sycl-tla pull request 516 and mean what they mean there.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import exactile
from exactile import workloads
from exactile._arrays import as_int32
from exactile.bench import measure, plan_fields, random_data
from exactile.machines import machine_of, processor_name
from exactile.peers import Fa3, Peer, TorchSdpa
from exactile.plan import Plan
from exactile.plot import tile_map
from exactile.report import JsonLines, TimelineFiles, failed, result_table
from exactile.workloads import Lengths

_SCHEDULERS = (*exactile.SCHEDULERS, "auto")
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; default: those of the process.

    Returns
    -------
    int
        Exit code: 0, 1 (verification failed), 2 (bad input, told in one line) or 130 (interrupted).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = "exactile"
    try:
        args = _parser().parse_args([_with_underscores(argument) for argument in argv])
        name = f"exactile {args.command}"
        args.command_line = shlex.join(["exactile", *argv])
        code: int = args.run(args)
        return code
    except _USER_ERRORS as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


# --- options ----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _with_underscores(argument: str) -> str:
    """--seq-len-qo=7 as --seq_len_qo=7."""
    name, equals, value = argument.partition("=")
    return (f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name) + equals + value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="exactile", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, text in (
        ("bench", _bench, "verify and measure on random data"),
        ("plan", _plan, "show what would be launched; allocates no data"),
        ("info", _info, "show version, backends and paths"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        if name != "info":
            _add_options(command)
        if name == "plan":
            command.add_argument("--plot", metavar="FILE.png", help="draw the tile map")
        if name == "bench":
            text = "on a GPU: write what every work-group did and when, for Perfetto, and FILE.png"
            command.add_argument("--timeline", metavar="FILE.json", help=text)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    def integer(text: str) -> int:
        return int(text, 0)

    def add(name: str, default: Any, text: str, **options: Any) -> None:
        text += "" if default is None else " (default: %(default)s)"
        parser.add_argument(f"--{name}", default=default, help=text, **options)

    def add_int(name: str, default: int | None, text: str) -> None:
        add(name, default, text, type=integer, metavar="N")

    add_int("batch", 32, "sequences")
    add_int("num_heads_q", 16, "query heads")
    add_int("num_heads_kv", None, "key/value heads (default: num_heads_q)")
    add_int("seq_len_qo", 512, "query tokens; with --varlen their mean, which zipf does not use")
    add_int("seq_len_kv", None, "key/value tokens (default: seq_len_qo)")
    add_int("head_size_vo", 128, "head_dim_v, of v and out")
    add_int("head_size_qk", None, "head_dim, of q and k (default: head_size_vo)")
    parser.add_argument("--varlen", action="store_true", help="draw a length for each sequence")
    names = ", ".join(workloads.DISTRIBUTIONS)
    add("varlen_dist", None, f"with --varlen: {names} (default: normal)", metavar="NAME")
    add("kv_equals_q", 1, "0: normal draws kv lengths too", type=int, choices=(0, 1))
    add_int("seed", workloads.SEED, "seed of lengths and data")
    add("seqlens", None, "the lengths themselves, separated by commas", metavar="N,N,...")
    add("trace", None, "read the lengths from a CSV file instead", metavar="FILE")
    add("trace_column", "context_tokens", "its column", metavar="NAME")
    parser.add_argument("--is_causal", action="store_true", help="causal, bottom-right aligned")
    add_int("window_left", -1, "keys seen before a row's own position; -1: all")
    add_int("window_right", -1, "keys seen after it; -1: all")
    add("dtype", "bfloat16", "float32, float16 or bfloat16", metavar="NAME")
    schedulers = f"one of {', '.join(_SCHEDULERS)}, or several with commas between"
    add("scheduler", "Individual", schedulers, metavar="NAME")
    parser.add_argument(
        "--compare", action="store_true", help="run all schedulers on the same data"
    )
    peers = "also time, in turns, PyTorch per sequence; on a GPU FlashAttention-3 from its library"
    parser.add_argument("--peers", nargs="?", const="", metavar="LIBRARY", help=peers)
    add("pack_gqa", "auto", "the heads of a kv head share a tile", choices=("auto", "0", "1"))
    add("pack_sequences", "auto", "short sequences share tiles", choices=("auto", "0", "1"))
    add("backend", "auto", "auto: the GPU where there is one, else cpu", metavar="NAME")
    add_int("threads", None, "CPU threads (default: all)")
    add_int("iterations", 100, "timed runs")
    add_int("warmup", 1, "untimed runs before them")
    add("verify", 1, "compare sampled rows with float64", type=int, choices=(0, 1))
    add("json", None, "append one JSON line per case", metavar="FILE")


def _chosen_schedulers(args: argparse.Namespace) -> list[str]:
    known = {name.lower(): name for name in _SCHEDULERS}
    names = args.scheduler.split(",")
    for name in names:
        if name.lower() not in known:
            expected = ", ".join(_SCHEDULERS)
            raise ValueError(f"--scheduler: expected one of {expected}, got {name!r}")
    return list(exactile.SCHEDULERS) if args.compare else [known[name.lower()] for name in names]


def _lengths(args: argparse.Namespace) -> Lengths:
    batch, q = args.batch, args.seq_len_qo
    k = q if args.seq_len_kv is None else args.seq_len_kv
    if args.varlen_dist and (args.trace or args.seqlens or not args.varlen):
        raise ValueError("--varlen_dist: expected --varlen beside it, no --trace and no --seqlens")
    if args.seqlens:
        if args.trace or args.varlen:
            raise ValueError("--seqlens: expected no --trace and no --varlen beside it")
        if not re.fullmatch(r"\d+(,\d+)*", args.seqlens):
            raise ValueError(f"--seqlens: expected lengths as in 5,0,700, got {args.seqlens!r}")
        lengths = as_int32([int(length) for length in args.seqlens.split(",")], "--seqlens")
        return Lengths(lengths, lengths)
    if not (args.varlen or args.trace):
        return workloads.constant(batch, seqlen_q=q, seqlen_k=k)
    name = args.varlen_dist or "normal"
    draw = workloads.distribution(name)
    drawn_kv = not args.kv_equals_q
    if drawn_kv and (args.trace or name != "normal"):
        raise ValueError("--kv_equals_q: expected 1, since only normal draws kv lengths")
    if k != q and not drawn_kv and name != "constant":
        raise ValueError(f"--seq_len_kv: expected {q}, since kv lengths equal q lengths, got {k}")
    if args.trace:
        return workloads.trace(batch, args.trace, column=args.trace_column)
    parameters: dict[str, dict[str, Any]] = {
        "normal": {"mean": q, "stddev": q // 2, "kv_equals_q": not drawn_kv}
        | ({"mean_k": k, "stddev_k": k // 2} if drawn_kv else {}),
        "uniform": {"high": 2 * q - 1},
        "lognormal": {"mean": q},
        "constant": {"seqlen_q": q, "seqlen_k": k},
    }
    seed = {} if name == "constant" else {"seed": args.seed}
    return draw(batch, **parameters.get(name, {}), **seed)


def _plans(args: argparse.Namespace) -> list[Plan]:
    """One plan per chosen scheduler, all of the same batch."""
    cu_seqlens_q, cu_seqlens_k = _lengths(args).cu_seqlens
    return [
        exactile.plan(
            cu_seqlens_q,
            cu_seqlens_k,
            num_heads_q=args.num_heads_q,
            num_heads_kv=args.num_heads_q if args.num_heads_kv is None else args.num_heads_kv,
            head_dim=args.head_size_vo if args.head_size_qk is None else args.head_size_qk,
            head_dim_v=args.head_size_vo,
            dtype=args.dtype,
            causal=args.is_causal,
            window=(args.window_left, args.window_right),
            scheduler=scheduler,
            pack_gqa=None if args.pack_gqa == "auto" else args.pack_gqa == "1",
            pack_sequences=None if args.pack_sequences == "auto" else args.pack_sequences == "1",
            backend=_backend(args.backend),
            workers=args.threads,
        )
        for scheduler in _chosen_schedulers(args)
    ]


def _backend(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if exactile.info()["backends"]["cuda"]["available"] else "cpu"


# --- commands ---------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> int:
    if args.iterations < 1 or args.warmup < 0:
        got = f"{args.iterations} and {args.warmup}"
        raise ValueError(f"expected --iterations >= 1 and --warmup >= 0, got {got}")
    plans = _plans(args)
    first, results = plans[0], []
    backend = exactile.info()["backends"][first.backend]
    if not backend["available"]:
        raise ValueError(f"--backend={first.backend}: {backend['reason']}")
    peer = None if args.peers is None else _peer(args.peers, first.backend)
    files = TimelineFiles(args.timeline, first.backend) if args.timeline else None
    machine = machine_of(first.backend)
    where = f"{first.backend} ({backend['isa']})" if backend.get("isa") else first.backend
    runs = max(args.warmup, args.verify) + args.iterations + (files is not None)
    steps = 1 + len(plans) * runs
    print(
        f"exactile {exactile.__version__}, {where}, {first.workers} workers, "
        + ", ".join(machine.describe().values())
    )
    summary = first.summary()
    print(
        summary if len(plans) == 1 else summary.partition("\nscheduler")[0], end="\n\n", flush=True
    )
    try:
        with JsonLines(args.json) as lines, _progress(steps) as progress:
            progress("random data")
            data = random_data(first, args.seed)
            for plan in plans:
                result = measure(
                    plan,
                    data,
                    machine,
                    iterations=args.iterations,
                    warmup=args.warmup,
                    verified=bool(args.verify),
                    command=args.command_line,
                    peer=peer,
                    progress=progress,
                )
                results.append(result)
                lines.write(result.to_json())
                if files:
                    progress(f"{plan.scheduler}: timeline")
                    files.record(plan, data, machine)
            if files:
                files.write(args.command_line)
    finally:  # what has been measured is shown, whatever happens after it
        if results:
            print("\n".join(result_table(results)))
    if files:
        print("\n".join(files.table()))
    return int(any(map(failed, results)))


def _peer(library: str, backend: str) -> Callable[..., Peer]:
    """What is timed beside ours, to be made from a plan and its data."""
    if backend == "cuda":
        if not library:
            raise ValueError(
                "--peers: expected --peers=LIBRARY with --backend=cuda, where LIBRARY is "
                "FlashAttention-3 as vllm builds it (_vllm_fa3_C*.so)"
            )
        return partial(Fa3, library=library)
    if library:
        raise ValueError(f"--peers: expected no library with --backend={backend}, got {library!r}")
    return TorchSdpa


def _plan(args: argparse.Namespace) -> int:
    plans = _plans(args)
    if args.plot:
        tile_map(plans, args.plot)
    with JsonLines(args.json) as lines:
        for plan in plans:
            lines.write(json.dumps({"command": args.command_line, "plan": plan_fields(plan)}))
    print("\n\n".join(plan.summary() for plan in plans))
    return 0


def _info(args: argparse.Namespace) -> int:
    info = exactile.info()
    rows = {"version": info["version"], "headers": info["include_dir"]}
    rows["processor"] = processor_name()
    for name, backend in info["backends"].items():
        rows[name] = backend["reason"] or "available"
        if backend.get("isa"):
            isas = ", ".join(backend["isas"])
            rows[name] = f"{backend['isa']} (of {isas}), {backend['threads']} threads"
        rows |= _DETAILS[name](backend) if name in _DETAILS else {}
    print("\n".join(f"{name:<13} {text}" for name, text in rows.items()))
    return 0


def _cuda_details(cuda: dict[str, Any]) -> dict[str, str]:
    nvrtc = cuda["nvrtc"]
    rows = {
        "  kernels": f"{cuda['kernels']} in the wheel",
        "  cache": cuda["cache_reason"] or cuda["cache_dir"],
        "  NVRTC": f"{nvrtc['version']}, {nvrtc['path']}" if nvrtc else cuda["nvrtc_reason"],
    }
    for i, device in enumerate(cuda["devices"]):
        major, minor = device["compute_capability"]
        rows[f"  device {i}"] = (
            f"{device['name']}, sm_{major}{minor}, {device['multiprocessors']} SMs, "
            f"{device['memory_bytes'] >> 30} GiB, driver {cuda['driver']}"
        )
    return rows


def _sycl_details(sycl: dict[str, Any]) -> dict[str, str]:
    if not sycl["runtime"]:
        return {}
    rows = {" runtime": f"{sycl['runtime']}, {sycl['kernels']} kernels in the wheel"}
    for i, device in enumerate(sycl["devices"]):
        rows[f" device {i}"] = (
            f"{device['name']}, {device['compute_units']} compute units, "
            f"{device['memory_bytes'] >> 30} GiB, driver {device['driver']}, "
            f"{device['kernel']} kernel"
        )
    return rows


_DETAILS = {"cuda": _cuda_details, "sycl": _sycl_details}


# --- progress ---------------------------------------------------------------------------------


@contextmanager
def _progress(steps: int, after_s: float = 2) -> Iterator[Callable[[str], None]]:
    """Show a bar on stderr after a while; none when stderr is not a terminal."""
    done, start, labels = threading.Event(), time.monotonic(), [""]

    def draw() -> None:
        while not done.wait(0.5 if time.monotonic() - start > after_s else after_s):
            bar = "#" * (24 * (len(labels) - 2) // steps)
            text = f"[{bar:.<24}] {time.monotonic() - start:.0f} s  {labels[-1]}"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=draw, daemon=True)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield labels.append
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
