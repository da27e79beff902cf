"""Command line: `exactile bench` measures, `exactile plan` shows what would be launched.

Options are those of the benchmark of intel/sycl-tla pull request 516 and mean what they mean there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

import exactile
from exactile import workloads
from exactile.bench import DTYPES, Case, Result, device_name, measure, numpy_dtype, plan_fields
from exactile.plan import Plan
from exactile.workloads import Lengths

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


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
    except USER_ERRORS as error:
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
    add("trace", None, "read the lengths from a CSV file instead", metavar="FILE")
    add("trace_column", "context_tokens", "its column", metavar="NAME")
    parser.add_argument("--is_causal", action="store_true", help="causal, bottom-right aligned")
    add_int("window_left", -1, "keys seen before a row's own position; -1: all")
    add_int("window_right", -1, "keys seen after it; -1: all")
    add("dtype", "float16", "of q, k, v and out", choices=DTYPES)
    add("scheduler", "Individual", ", ".join(_schedulers().values()), metavar="NAME")
    parser.add_argument("--compare", action="store_true", help="every scheduler, on the same data")
    add("pack_gqa", "auto", "the heads of a kv head share a tile", choices=("auto", "0", "1"))
    add("backend", None, "where to run (default: the planner's choice)", metavar="NAME")
    add_int("threads", None, "CPU threads (default: all)")
    add_int("iterations", 100, "timed runs")
    add_int("warmup", 1, "untimed runs before them")
    add("verify", 1, "compare sampled rows with float64", type=int, choices=(0, 1))
    add("json", None, "append one JSON line per case", metavar="FILE")


def _schedulers() -> dict[str, str]:
    """Every accepted name, by its lower-case spelling."""
    return {name.lower(): name for name in (*exactile.SCHEDULERS, "auto")}


def _chosen_schedulers(args: argparse.Namespace) -> list[str]:
    known = _schedulers()
    if args.scheduler.lower() not in known:
        expected = ", ".join(known.values())
        raise ValueError(f"--scheduler: expected one of {expected}, got {args.scheduler!r}")
    if args.compare:
        return [name for name in known.values() if name != "auto"]
    return [known[args.scheduler.lower()]]


def _lengths(args: argparse.Namespace) -> Lengths:
    batch, q = args.batch, args.seq_len_qo
    k = q if args.seq_len_kv is None else args.seq_len_kv
    if args.varlen_dist and (args.trace or not args.varlen):
        raise ValueError("--varlen_dist: expected --varlen beside it, and no --trace")
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


def _case(args: argparse.Namespace) -> Case:
    return Case(
        lengths=_lengths(args),
        num_heads_q=args.num_heads_q,
        num_heads_kv=args.num_heads_q if args.num_heads_kv is None else args.num_heads_kv,
        head_dim=args.head_size_vo if args.head_size_qk is None else args.head_size_qk,
        head_dim_v=args.head_size_vo,
        dtype=args.dtype,
        causal=args.is_causal,
        window=(args.window_left, args.window_right),
        pack_gqa=None if args.pack_gqa == "auto" else args.pack_gqa == "1",
        backend=args.backend,
        num_threads=args.threads,
    )


# --- commands ---------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> int:
    case = _case(args)
    numpy_dtype(case.dtype)
    plans = [case.plan(scheduler) for scheduler in _chosen_schedulers(args)]
    results = []
    with _JsonLines(args.json) as lines, _Progress() as progress:
        runs = max(args.warmup, args.verify) + args.iterations
        progress.steps = 1 + len(plans) * runs
        progress("random data")
        data = case.data(args.seed)
        for plan in plans:
            result = measure(
                case,
                plan,
                data,
                iterations=args.iterations,
                warmup=args.warmup,
                verified=bool(args.verify),
                command=args.command_line,
                progress=lambda what, name=plan.scheduler: progress(f"{name}: {what}"),
            )
            results.append(result)
            lines.write(result.to_json())
    first = results[0]
    isa = f" ({first.isa})" if first.isa else ""
    print(
        f"exactile {first.version}, {plans[0].backend}{isa}, {first.threads} threads, {first.device}"
    )
    print("\n".join(_describe(case)), "\n")
    print("\n".join(_result_table(results)))
    return 0 if all(r.verification is None or r.verification.passed for r in results) else 1


def _plan(args: argparse.Namespace) -> int:
    case = _case(args)
    plans = [case.plan(scheduler) for scheduler in _chosen_schedulers(args)]
    if args.plot:
        from exactile.plot import tile_map

        tile_map(case, plans, args.plot)
    with _JsonLines(args.json) as lines:
        for plan in plans:
            lines.write(json.dumps({"command": args.command_line, "plan": plan_fields(case, plan)}))
    print("\n".join(_describe(case)), "\n")
    print("\n\n".join(plan.summary() for plan in plans))
    return 0


def _info(args: argparse.Namespace) -> int:
    info = exactile.info()
    rows = [
        ("version", info["version"]),
        ("include_dir", info["include_dir"]),
        ("cpu", device_name()),
    ]
    for name, backend in info["backends"].items():
        text = f"not available: {backend['reason']}"
        if backend["available"]:
            isas = ", ".join(backend["isas"] or ())
            text = f"{backend['isa']} (of {isas}), {backend['threads']} threads"
        rows.append((f"backend {name}", text))
    print("\n".join(f"{name:<14}{text}" for name, text in rows))
    return 0


# --- output -----------------------------------------------------------------------------------


class _JsonLines:
    """Appends whole lines to a file that is opened, and so known to be writable, beforehand."""

    def __init__(self, path: str | None) -> None:
        self.file = open(path, "a", encoding="utf-8") if path else None  # noqa: SIM115

    def __enter__(self) -> _JsonLines:
        return self

    def write(self, line: str) -> None:
        if self.file:
            self.file.write(line + "\n")
            self.file.flush()

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()


class _Progress:
    """A bar on stderr for what takes over two seconds; none when stderr is not a terminal."""

    def __init__(self) -> None:
        self.steps, self.step, self.what = 1, -1, ""
        self.done, self.start = threading.Event(), time.monotonic()
        self.thread = threading.Thread(target=self._draw, daemon=True)

    def __call__(self, what: str) -> None:
        self.step, self.what = self.step + 1, what

    def _draw(self) -> None:
        while not self.done.wait(0.5 if time.monotonic() - self.start > 2 else 2):
            filled = 24 * self.step // self.steps
            bar = "#" * filled + "." * (24 - filled)
            text = f"[{bar}] {time.monotonic() - self.start:.0f} s  {self.what}"
            print(f"\r\x1b[K{text}\r", end="", file=sys.stderr, flush=True)
        print("\x1b[K", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.thread.is_alive():
            self.thread.join()


def _describe(case: Case) -> Iterable[str]:
    left, right = (n if n >= 0 else "all" for n in case.window)
    mask = "causal" if case.causal else "full"
    if case.window != (-1, -1):
        mask += f", window {left} left, {right} right"
    head_dim = f"{case.head_dim}" + (
        f" / {case.head_dim_v}" if case.head_dim_v != case.head_dim else ""
    )
    q, k = case.lengths
    yield (
        f"batch {len(q)}, heads {case.num_heads_q} / {case.num_heads_kv}, head_dim {head_dim}, "
        f"{case.dtype}, {mask} attention"
    )
    yield f"seqlens_q  {_shortened(q)}"
    yield f"seqlens_k  {'the same' if np.array_equal(q, k) else _shortened(k)}"


def _shortened(seqlens: npt.NDArray[np.int32], shown: int = 16) -> str:
    """All of a few lengths, or the first and last of many, and their sum."""
    words = [str(n) for n in seqlens]
    if len(words) > shown:
        words[shown - 4 : -3] = ["..."]
    total, longest = int(seqlens.sum(dtype=np.int64)), seqlens.max(initial=0)
    return f"{' '.join(words)}  ({total:,} tokens, longest {longest:,})"


def _result_table(results: Sequence[Result]) -> Iterable[str]:
    header = ["scheduler", "launched", "valid", "empty", "median ms", "spread", "TFLOP/s", "GB/s"]
    rows = [[*header, "max error", "of tolerance"]]
    for r in results:
        launched, valid = r.plan["launched"], r.plan["valid"]
        row = [r.plan["scheduler"], f"{launched:,}", f"{valid:,}", f"{max(0, launched - valid):,}"]
        row += [f"{r.median_ms:,.3f}", f"{r.spread:.1%}", f"{r.tflops:.3f}", f"{r.gbps:.2f}"]
        if r.verification:
            verdict = "" if r.verification.passed else " FAILED"
            row += [
                f"{r.verification.max_error:.1e}",
                f"{r.verification.of_tolerance:.0%}{verdict}",
            ]
        else:
            row += ["not verified", ""]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield f"{row[0]:<{widths[0]}}  {'  '.join(cells)}".rstrip()
