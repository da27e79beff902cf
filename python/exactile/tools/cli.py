"""Command line: `exactile bench` measures, `exactile plan` shows what would be launched.

Options are those of the benchmark of intel/sycl-tla pull request 516 and mean what they mean there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

import exactile
from exactile.planning import Plan
from exactile.tools import completion, memory, options
from exactile.tools.bench import measure, plan_fields, random_block_table, random_data
from exactile.tools.machines import Machine, machine_of
from exactile.tools.peers import Fa3, Peer, TorchSdpa
from exactile.tools.plot import tile_map
from exactile.tools.report import (
    JsonLines,
    TimelineFiles,
    baseline_text,
    batch_text,
    failed,
    info_table,
    progress_bar,
    result_table,
    scores_text,
)

_USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
"""Errors of input, files and devices, printed as one line. All others are bugs of ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; default: those of the process.

    Returns
    -------
    int
        Exit code: 0, 1 (verification failed), 2 (bad input, one line of text), 130 (interrupted) or
        141 (the output's pipe is closed).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = "exactile"
    try:
        try:
            if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be any bytes
                sys.stdout.reconfigure(errors="backslashreplace")
            parser = _parser()
            if argv and argv[0] in _COMMANDS:
                name += f" {argv[0]}"
            args = parser.parse_args([options.with_underscores(argument) for argument in argv])
            args.command_line = shlex.join(["exactile", *argv])
            code: int = args.run(args)
            return code
        finally:
            _flush_output()
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except (NotImplementedError, RecursionError):  # RuntimeErrors that no device raises
        raise
    except _USER_ERRORS as error:
        if "--traceback" in argv or os.environ.get("EXACTILE_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{name}: error: {_printable(text)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def _printable(text: str) -> str:
    """Text for a terminal: control characters, that would be obeyed, as escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _flush_output() -> None:
    """Flush standard output; when that fails, what is left goes nowhere, not to Python's exit."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise


def _parser() -> argparse.ArgumentParser:
    parser = options.Parser(prog="exactile", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"exactile {exactile.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (run, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        if name in ("bench", "plan"):
            options.add_options(command)
        if name == "plan":
            text = "draw the tile map"
            command.add_argument("--plot", type=options.file_name, metavar="FILE.png", help=text)
        if name == "bench":
            text = "on a GPU: write what every work-group did and when, for Perfetto, and FILE.png"
            kind = options.file_name
            command.add_argument("--timeline", type=kind, metavar="FILE.json", help=text)
        if name == "info":
            command.add_argument("--json", action="store_true", help="print JSON instead")
        if name == "completion":
            command.add_argument("shell", choices=completion.SHELLS)
        text = "show where an error was raised (also: EXACTILE_TRACEBACK=1)"
        command.add_argument("--traceback", action="store_true", help=text)
    return parser


# --- commands ---------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> int:
    lengths = options.lengths(args)
    plans = options.plans(args, lengths)
    first, results = plans[0], []
    backend = exactile.info()["backends"][first.backend]
    if not backend["available"]:
        raise ValueError(f"--backend={first.backend}: {backend['reason']}")
    peer = None if args.peers is None else _peer(args.peers, first.backend)
    machine = machine_of(first.backend)
    _expect_memory(args, first, machine)
    files = TimelineFiles(args.timeline, first.backend) if args.timeline else None
    runs = max(args.warmup, args.verify) + args.iterations + (files is not None)
    with JsonLines(args.json) as lines:
        where = f"{first.backend} ({backend['isa']})" if backend.get("isa") else first.backend
        about = ", ".join(machine.describe().values())
        lines.print(f"exactile {exactile.__version__}, {where}, {first.workers} workers, {about}")
        if reason := options.why_not_the_gpu(args):
            lines.print(reason)
        lines.print(batch_text(plans))
        run_options = options.score_options(args)
        if run_options:
            lines.print(scores_text(run_options))
        if "Individual" in options.chosen_schedulers(args):
            lines.print(baseline_text(options.plans(args, lengths, ["auto"])[0]))
        lines.print("")
        try:
            with progress_bar(1 + len(plans) * runs) as progress:
                progress("random data")
                data = random_data(first, args.seed)
                if first.page_size:
                    run_options["block_table"] = random_block_table(first, args.seed)
                for plan in plans:
                    result = measure(
                        plan,
                        data,
                        machine,
                        iterations=args.iterations,
                        warmup=args.warmup,
                        verified=bool(args.verify),
                        command=args.command_line,
                        options=run_options,
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
                lines.print("\n".join(result_table(results)))
        if files:
            lines.print("\n".join(files.table()))
    return int(any(map(failed, results)))


def _expect_memory(args: argparse.Namespace, plan: Plan, machine: Machine) -> None:
    """Raise MemoryError unless the data of a plan fits where it is to lie."""
    option, tensors = options.source_of_lengths(args), memory.tensors_bytes(plan)
    host = tensors + args.verify * memory.verification_bytes(plan)
    host += memory.comparison_bytes(plan) if args.peers else 0
    memory.expect_memory(option, "q, k, v and out", host, memory.available_bytes())
    if args.timeline and plan.backend == "cuda":
        tensors += plan._core.timeline_bytes
    available = machine.available_bytes()
    memory.expect_memory(option, "q, k, v and out", tensors, available, f"{plan.backend} memory")


def _peer(library: str | bool, backend: str) -> Callable[..., Peer]:
    """What is timed beside ours, to be made from a plan and its data; True: no library."""
    if backend == "cuda":
        if library is True:
            raise ValueError(
                "--peers: expected --peers=LIBRARY with --backend=cuda, where LIBRARY is "
                "FlashAttention-3 as vllm builds it (_vllm_fa3_C*.so)"
            )
        return partial(Fa3, library=str(library))
    if library is not True:
        raise ValueError(f"--peers: expected no library with --backend={backend}, got {library!r}")
    return TorchSdpa


def _plan(args: argparse.Namespace) -> int:
    plans = options.plans(args, options.lengths(args))
    if args.plot:
        tile_map(plans, args.plot)
    with JsonLines(args.json) as lines:
        for plan in plans:
            lines.write(json.dumps({"command": args.command_line, "plan": plan_fields(plan)}))
        lines.print("\n\n".join(plan.summary() for plan in plans))
    return 0


def _info(args: argparse.Namespace) -> int:
    info = exactile.info()
    print(json.dumps(info, indent=2) if args.json else "\n".join(info_table(info)))
    return 0


def _completion(args: argparse.Namespace) -> int:
    print(completion.script(_parser(), args.shell), end="")
    return 0


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "bench": (_bench, "verify and measure on random data"),
    "plan": (_plan, "show what bench with the same options would launch; allocates no data"),
    "info": (_info, "show version, backends and paths"),
    "completion": (_completion, "print a script that completes this command line in a shell"),
}
