"""Options of the command line: what `exactile bench` and `exactile plan` take, and what it means.

Names and defaults are those of the benchmark of intel/sycl-tla pull request 516.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, NoReturn, cast

import numpy as np

import exactile
from exactile import workloads
from exactile._arguments import BackendName, SchedulerName
from exactile._arrays import DTYPE_ALIASES
from exactile.planning import Plan
from exactile.tools import memory
from exactile.workloads import Lengths

_INT32_MAX = 2**31 - 1

SCHEDULERS = (*exactile.SCHEDULERS, "auto")

_AUTO: dict[str, bool | None] = {"auto": None, "0": False, "1": True}
_ZERO_ONE = {"0": 0, "1": 1}

VALUES: dict[str, tuple[str, ...]] = {
    "varlen_dist": tuple(workloads.DISTRIBUTIONS),
    "kv_equals_q": tuple(_ZERO_ONE),
    "dtype": tuple(DTYPE_ALIASES),
    "scheduler": SCHEDULERS,
    "pack_gqa": tuple(_AUTO),
    "pack_sequences": tuple(_AUTO),
    "backend": ("auto", *exactile.BACKENDS),
    "verify": tuple(_ZERO_ONE),
}
"""What an option that takes names takes; errors, help and completion read it."""

FILES = ("trace", "json", "plot", "timeline", "peers")
"""Options that take the name of a file."""

_REFUSES = {
    "seqlens": (
        *("batch", "seq_len_qo", "seq_len_kv", "kv_equals_q"),
        *("varlen", "varlen_dist", "trace", "trace_column"),
    ),
    "trace": ("seq_len_qo", "seq_len_kv", "kv_equals_q", "varlen", "varlen_dist"),
    "compare": ("scheduler",),
    "peers": ("page_size", "softcap", "sinks", "alibi"),
    "timeline": ("page_size", "softcap", "sinks", "alibi", "num_splits"),
}
_NEEDS = {"varlen_dist": "varlen", "kv_equals_q": "varlen", "trace_column": "trace"}
"""What would have no effect beside, or without, what."""

_OPTION_OF = {
    "head_dim": "--head_size_qk",
    "head_dim_v": "--head_size_vo",
    "workers": "--threads",
} | {
    name: f"--{name}"
    for name in (
        *("num_heads_q", "num_heads_kv", "dtype", "pack_gqa", "pack_sequences"),
        *("page_size", "softcap", "num_splits"),
    )
}
"""Of the planner's parameters: how the command line calls them."""


class Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(message.removeprefix("argument "))


def with_underscores(argument: str) -> str:
    """--seq-len-qo=7 as --seq_len_qo=7."""
    name, equals, value = argument.partition("=")
    return (f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name) + equals + value


# --- kinds of values ----------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _integer(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(
                f"expected an integer from {minimum} to {maximum}, got {_quoted(text)}"
            )
        return value

    return parse


def _one_of(values: Mapping[str, Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        if text not in values:
            raise argparse.ArgumentTypeError(
                f"expected one of {', '.join(values)}, got {_quoted(text)}"
            )
        return values[text]

    return parse


def file_name(text: str) -> str:
    """Kind of an option that names a file."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file, got ''")
    return text


def _softcap(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {_quoted(text)}")
    return value


def _integers(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected lengths as in 5,0,700, got {_quoted(text)}")
    return [_integer(0, _INT32_MAX)(length.lstrip("0") or "0") for length in text.split(",")]


def _schedulers(text: str) -> list[str | exactile.Scheduler]:
    return [_scheduler(name) for name in text.split(",")]


def _scheduler(text: str) -> str | exactile.Scheduler:
    known = {name.lower(): name for name in SCHEDULERS}
    if text.lower() in known:
        return known[text.lower()]
    if ":" not in text:
        expected = f"one of {', '.join(SCHEDULERS)} or FILE.hpp:NAME"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {_quoted(text)}")
    try:
        return exactile.Scheduler.from_file(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("Scheduler: ")) from None


# --- the options --------------------------------------------------------------------------------


def _add(
    parser: argparse.ArgumentParser, name: str, text: str, shown: str | None = None, **options: Any
) -> None:
    text += "" if shown is None else f" (default: {shown})"
    parser.add_argument(f"--{name}", help=text, **options)


def _add_int(
    parser: argparse.ArgumentParser,
    name: str,
    text: str,
    shown: str | None = None,
    minimum: int = 0,
    maximum: int = _INT32_MAX,
    default: int | None = None,
) -> None:
    shown = shown if default is None else str(default)
    kind = _integer(minimum, maximum)
    _add(parser, name, text, shown, type=kind, metavar="N", default=default)


def _add_name(
    parser: argparse.ArgumentParser,
    name: str,
    text: str,
    values: Mapping[str, Any],
    shown: str,
    default: Any = None,
) -> None:
    kind, metavar = _one_of(values), "|".join(VALUES[name])
    _add(parser, name, text, shown, type=kind, metavar=metavar, default=default)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes a batch, its plan and its measurement."""
    add, add_int, add_name = (partial(f, parser) for f in (_add, _add_int, _add_name))
    add_int("batch", "sequences", "32; with --trace all rows of the file")
    add_int("num_heads_q", "query heads", minimum=1, default=16)
    add_int("num_heads_kv", "key/value heads", "num_heads_q", minimum=1)
    text = "query tokens; with --varlen their mean, which zipf does not use"
    add_int("seq_len_qo", text, "512")
    add_int("seq_len_kv", "key/value tokens", "seq_len_qo")
    text = "key/value tokens that each sequence has in a cache besides"
    add_int("seq_len_kv_cache", text, "0")
    text = "keys and values lie in pages of so many, in any order"
    add_int("page_size", text, "none: they are packed", minimum=1)
    add_int("head_size_vo", "head_dim_v, of v and out", minimum=1, default=128)
    add_int("head_size_qk", "head_dim, of q and k", "head_size_vo", minimum=1)
    parser.add_argument("--varlen", action="store_true", help="draw a length for each sequence")
    names = {name: name for name in workloads.DISTRIBUTIONS}
    add_name("varlen_dist", "with --varlen", names, "normal")
    add_name("kv_equals_q", "0: normal draws kv lengths too", _ZERO_ONE, "1")
    seed = workloads.SEED
    add_int("seed", "seed of lengths and data", default=seed, maximum=2**64 - 1)
    text = "the lengths themselves, separated by commas"
    add("seqlens", text, type=_integers, metavar="N,N,...")
    add("trace", "read the lengths from a CSV file", type=file_name, metavar="FILE")
    add("trace_column", "its column", "context_tokens", metavar="NAME")
    parser.add_argument("--is_causal", action="store_true", help="causal, bottom-right aligned")
    add_int("window_left", "keys seen before a row's own position; -1: all", minimum=-1, default=-1)
    add_int("window_right", "keys seen after it; -1: all", minimum=-1, default=-1)
    add_int("window", "of a sliding window: keys seen, the row's own is the last", minimum=1)
    add("softcap", "scores become X * tanh(score / X)", "none", type=_softcap, metavar="X")
    text = "a logit without a value for every head, random"
    parser.add_argument("--sinks", action="store_true", help=text)
    text = "ALiBi, with the slopes of its paper"
    parser.add_argument("--alibi", action="store_true", help=text)
    add_name("dtype", "of q, k, v and out", DTYPE_ALIASES, "bfloat16", "bfloat16")
    schedulers = f"{', '.join(SCHEDULERS)}, FILE.hpp:NAME, or several with commas between"
    add("scheduler", schedulers, "Individual", type=_schedulers, metavar="NAME")
    parser.add_argument(
        "--compare", action="store_true", help="run all schedulers on the same data"
    )
    add_name("pack_gqa", "the heads of a kv head share a tile", _AUTO, "auto")
    add_name("pack_sequences", "short sequences share tiles", _AUTO, "auto")
    text = "work-groups that share the keys of a tile, at most (CUDA)"
    add_int("num_splits", text, "auto with --scheduler=auto, else 1", minimum=1)
    backends = {name: name for name in VALUES["backend"]}
    text = "auto: cuda where a GPU and PyTorch are, else cpu"
    add_name("backend", text, backends, "auto", "auto")
    text = "work-groups that run at a time: CPU threads"
    add_int("threads", text, "all, or what the GPU runs", minimum=1)
    text = "append one JSON line per case; -: to standard output, and text to standard error"
    add("json", text, type=file_name, metavar="FILE")
    add_int("iterations", "timed runs", minimum=1, default=100)
    add_int("warmup", "untimed runs before them", default=1)
    add_name("verify", "compare sampled rows with float64", _ZERO_ONE, "1", 1)
    peers = "also time, in turns, PyTorch per sequence; on a GPU FlashAttention-3 from its library"
    add("peers", peers, nargs="?", const=True, type=file_name, metavar="LIBRARY")


# --- what they mean -----------------------------------------------------------------------------


def plans(
    args: argparse.Namespace,
    lengths: Lengths,
    schedulers: list[str | exactile.Scheduler] | None = None,
) -> list[Plan]:
    """One plan per scheduler, all of the same batch; default: those that were chosen.

    Raises
    ------
    ValueError
        Options that cannot be planned; the message names them.
    MemoryError
        A tile list that does not fit.
    """
    heads_kv = args.num_heads_q if args.num_heads_kv is None else args.num_heads_kv
    names = chosen_schedulers(args) if schedulers is None else schedulers
    if any(name != "Individual" for name in names):
        group = max(1, args.num_heads_q // heads_kv) if args.pack_gqa is not False else 1
        total_q = int(lengths.q.sum(dtype=np.int64))
        needed = memory.records_bytes(total_q, len(lengths.q), group)
        available = memory.available_bytes()
        memory.expect_memory(source_of_lengths(args), "the tile list", needed, available)
    cu_seqlens_q, cu_seqlens_k = lengths.cu_seqlens
    backend = backend_of(args)
    try:
        return [
            exactile.plan(
                cu_seqlens_q,
                cu_seqlens_k,
                num_heads_q=args.num_heads_q,
                num_heads_kv=heads_kv,
                head_dim=args.head_size_vo if args.head_size_qk is None else args.head_size_qk,
                head_dim_v=args.head_size_vo,
                dtype=args.dtype,
                causal=args.is_causal,
                window=_window(args),
                page_size=args.page_size,
                scheduler=cast("SchedulerName | exactile.Scheduler", name),
                pack_gqa=args.pack_gqa,
                pack_sequences=args.pack_sequences,
                num_splits=1 if getattr(args, "timeline", None) else args.num_splits,
                backend=cast(BackendName, backend),
                workers=args.threads,
            )
            for name in names
        ]
    except ValueError as error:
        text = _in_options(str(error), source_of_lengths(args))
        if args.backend == "auto" and "backend" in text:
            text += f" (--backend=auto is {backend} here)"
        raise ValueError(text) from error


def _window(args: argparse.Namespace) -> tuple[int, int]:
    if args.window is not None:
        return args.window - 1, 0
    return args.window_left, args.window_right


def score_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of a run that change scores; arrays in float32, on the host.

    ALiBi's slopes are those of its paper (arXiv:2108.12409) for a power of two of heads:
    ``2 ** (-8 * (head + 1) / num_heads_q)``, here for any number.
    """
    given: dict[str, Any] = {}
    heads = args.num_heads_q
    if args.softcap:
        given["softcap"] = args.softcap
    if args.sinks:
        given["sinks"] = np.random.default_rng(args.seed).standard_normal(heads, np.float32)
    if args.alibi:
        given["alibi_slopes"] = 2.0 ** (-8 * np.arange(1, heads + 1, dtype=np.float32) / heads)
    return given


def _in_options(message: str, source: str) -> str:
    """What the planner says of its parameters, as the command line calls them."""
    if not message.startswith("plan: "):  # an environment variable
        return message
    words = "|".join(sorted(_OPTION_OF, reverse=True))
    text = re.sub(rf"\b({words})\b", lambda word: _OPTION_OF[word[0]], message[len("plan: ") :])
    return text if "--" in text else f"{source}: {text}"


def chosen_schedulers(args: argparse.Namespace) -> list[str | exactile.Scheduler]:
    """The schedulers to plan for: names, or policies of the user's own."""
    return list(exactile.SCHEDULERS) if args.compare else args.scheduler or ["Individual"]


def backend_of(args: argparse.Namespace) -> str:
    """Name of the backend to plan for."""
    if args.backend != "auto":
        return str(args.backend)
    gpu = find_spec("torch") and exactile.info()["backends"]["cuda"]["available"]
    return "cuda" if gpu else "cpu"


def why_not_the_gpu(args: argparse.Namespace) -> str | None:
    """Why ``--backend=auto`` is the CPU on a machine that has a GPU; None where it is not."""
    if args.backend != "auto" or find_spec("torch"):
        return None
    if not exactile.info()["backends"]["cuda"]["available"]:
        return None
    return "--backend=auto is cpu: PyTorch, which holds the data on the GPU, is not installed"


def _check_combinations(args: argparse.Namespace) -> None:
    given = {name for name, x in vars(args).items() if x is not None and x is not False}
    for option, others in _REFUSES.items():
        for other in others:
            if option in given and other in given:
                raise ValueError(f"--{option}: expected no --{other} beside it")
    for option, other in _NEEDS.items():
        if option in given and other not in given:
            raise ValueError(f"--{option}: expected --{other} beside it")
    if args.window is not None and (args.window_left, args.window_right) != (-1, -1):
        raise ValueError("--window: expected no --window_left and --window_right beside it")
    if args.is_causal and args.window_right > 0:
        raise ValueError(f"--window_right: expected 0 with --is_causal, got {args.window_right}")


def source_of_lengths(args: argparse.Namespace) -> str:
    """The option that the lengths come from."""
    return next((f"--{x}" for x in ("seqlens", "trace") if getattr(args, x) is not None), "--batch")


def lengths(args: argparse.Namespace) -> Lengths:
    """The lengths of the batch.

    Raises
    ------
    ValueError
        Options that give no lengths, or that would have no effect; the message names them.
    MemoryError
        Lengths that do not fit.
    """
    _check_combinations(args)
    source, batch = source_of_lengths(args), 32 if args.batch is None else args.batch
    needed = memory.sequences_bytes(batch)
    memory.expect_memory("--batch", "lengths", needed, memory.available_bytes())
    try:
        if args.seqlens is not None:
            given = np.array(args.seqlens, np.int32)
            found = Lengths(given, given)
        elif args.trace is not None:
            column = args.trace_column or "context_tokens"
            found = workloads.trace(args.batch, args.trace, column=column)
        else:
            found = _drawn(args, batch)
        if args.seq_len_kv_cache:
            longest = int(found.k.max(initial=0)) + args.seq_len_kv_cache
            if longest > _INT32_MAX:
                raise ValueError(f"--seq_len_kv_cache: expected < 2^31 keys, got {longest}")
            found = Lengths(found.q, found.k + np.int32(args.seq_len_kv_cache))
    except ValueError as error:
        text = str(error).removeprefix("trace: ")
        raise ValueError(text if text.startswith("--") else f"{source}: {text}") from error
    total = max(int(side.sum(dtype=np.int64)) for side in found)
    if total > _INT32_MAX:
        raise ValueError(f"{source}: expected at most {_INT32_MAX} tokens in all, got {total}")
    return found


def _drawn(args: argparse.Namespace, batch: int) -> Lengths:
    q = 512 if args.seq_len_qo is None else args.seq_len_qo
    k = q if args.seq_len_kv is None else args.seq_len_kv
    name = (args.varlen_dist or "normal") if args.varlen else "constant"
    drawn_kv = args.kv_equals_q == 0
    if drawn_kv and name != "normal":
        raise ValueError("--kv_equals_q: expected 1, since only normal draws kv lengths")
    if k != q and not drawn_kv and name != "constant":
        raise ValueError(f"--seq_len_kv: expected {q}, since kv lengths equal q lengths, got {k}")
    if name == "mixed" and (args.seq_len_qo is not None or args.seq_len_kv is not None):
        raise ValueError("--varlen_dist: expected no --seq_len_qo or --seq_len_kv beside mixed")
    if min(q, k) < 1 and name in ("normal", "uniform", "lognormal"):
        option = "--seq_len_qo" if q < 1 else "--seq_len_kv"
        raise ValueError(f"{option}: expected a mean of at least 1 token, got 0")
    parameters: dict[str, dict[str, Any]] = {
        "normal": {"mean": q, "stddev": q // 2, "kv_equals_q": not drawn_kv}
        | ({"mean_k": k, "stddev_k": k // 2} if drawn_kv else {}),
        "uniform": {"high": 2 * q - 1},
        "lognormal": {"mean": q},
        "constant": {"seqlen_q": q, "seqlen_k": k},
    }
    seed = {} if name == "constant" else {"seed": args.seed}
    return workloads.distribution(name)(batch, **parameters.get(name, {}), **seed)
