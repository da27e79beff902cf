"""Report: what the command line prints, and the files that it writes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from exactile.planning import Plan
from exactile.tools import plot
from exactile.tools.bench import Data, Result
from exactile.tools.machines import Gpu, Machine, processor_name
from exactile.tools.timeline import PHASES, Timeline, record, write_trace


class JsonLines:
    """Appends whole lines to a file that is opened, and so known to be writable, beforehand.

    Parameters
    ----------
    path : str or None
        ``"-"``: standard output, and what is printed for people goes to standard error. None: no
        lines.
    """

    def __init__(self, path: str | None) -> None:
        self.standard = path == "-"
        self.file = sys.stdout if self.standard else None
        if path and not self.standard:
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> JsonLines:
        return self

    def write(self, line: str) -> None:
        """Append one line, if there is a file."""
        if self.file:
            self.file.write(line + "\n")
            self.file.flush()

    def print(self, text: str) -> None:
        """Print text for people."""
        print(text, file=sys.stderr if self.standard else sys.stdout, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.file and not self.standard:
            self.file.close()


@contextmanager
def progress_bar(steps: int, after_s: float = 2) -> Iterator[Callable[[str], None]]:
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


class TimelineFiles:
    """A trace and a picture of it. What they need is known to be there before anything is run.

    Parameters
    ----------
    path : str
        Of the trace; the picture lies beside it.
    backend : str
        Of the plans.

    Raises
    ------
    ValueError
        The backend records nothing, or the picture has the trace's name.
    ImportError
        matplotlib is not installed.
    OSError
        The file cannot be written.
    """

    def __init__(self, path: str, backend: str) -> None:
        if backend != "cuda":
            raise ValueError(f"--timeline: expected --backend=cuda, got {backend}")
        self.path, self.picture = Path(path), Path(path).with_suffix(".png")
        if self.path == self.picture:
            raise ValueError(f"--timeline: expected the name of a JSON file, got {path}")
        plot.figure_class()
        self.path.write_text("")
        self.timelines: list[Timeline] = []

    def record(self, plan: Plan, data: Data, machine: Machine) -> None:
        """Run a plan with the kernels that record."""
        self.timelines.append(record(plan, data, cast(Gpu, machine)))

    def write(self, command: str) -> None:
        """Write both files."""
        with self.path.open("w", encoding="utf-8") as file:
            write_trace(self.timelines, file, command)
        plot.timeline(self.timelines, self.picture)

    def table(self) -> Iterable[str]:
        """Lines of text: where the time went."""
        first = self.timelines[0]
        yield f"\ntimeline: one launch, parts of the time of {first.num_sms} SMs"
        rows = [["scheduler", "us", *PHASES, "between", "tail"]]
        for one in self.timelines:
            shares = [f"{share:.1%}" for share in one.shares().values()]
            rows.append([one.plan.scheduler, f"{one.span_ns / 1e3:,.1f}", *shares])
        yield from aligned(rows)
        yield f"the device's clock ticks every {first.timer_step_ns} ns"
        yield f"{self.path} (ui.perfetto.dev), {self.picture}"


def batch_text(plans: Sequence[Plan]) -> str:
    """What is common to plans of one batch; all there is to say of a single one."""
    summary = plans[0].summary()
    return summary if len(plans) == 1 else summary.partition("\nscheduler")[0]


def scores_text(options: Mapping[str, Any]) -> str:
    """What becomes of the scores: options of a run, at least one."""
    names = {"softcap": "softcap {:g}", "sinks": "sinks", "alibi_slopes": "ALiBi"}
    said = [text.format(options[name]) for name, text in names.items() if name in options]
    return f"scores      {', '.join(said)}"


def baseline_text(auto: Plan) -> str:
    """What `Individual` is there for, and what the planner would choose."""
    group = auto.num_heads_q // auto.num_heads_kv
    choice = f"{auto.scheduler}, {auto.order}"
    choice += f", {group} heads a tile" * auto.pack_gqa
    choice += ", short sequences packed" * auto.pack_sequences
    choice += f", keys in up to {auto.num_splits} parts" * (auto.num_splits > 1)
    return (
        "baseline    Individual, the padded grid, is what others are compared with;\n"
        f"            --scheduler=auto would choose {choice}: {auto.launched:,} work-groups"
    )


def result_table(results: Sequence[Result]) -> Iterable[str]:
    """Lines of text: a row per case, and one per peer."""
    header = ["scheduler", "launched", "valid", "empty", "median ms", "spread", "TFLOP/s", "GB/s"]
    rows = [[*header, "max error", "of tolerance"]]
    for r in results:
        launched, valid, verified = r.plan["launched"], r.plan["valid"], r.verification
        row = [r.plan["scheduler"], f"{launched:,}", f"{valid:,}", f"{max(0, launched - valid):,}"]
        row += [f"{r.median_ms:,.3f}", f"{r.spread:.1%}", f"{r.tflops:.3f}", f"{r.gbps:.2f}"]
        row += [f"{verified.max_error:.1e}"] if verified else ["not verified"]
        row += [f"{verified.of_tolerance:.0%}" if verified else ""]
        rows.append(row)
        if peer := r.peer:
            row = [f"{peer.name} {peer.version}", "", "", "", f"{peer.median_ms:,.3f}"]
            row += [f"{peer.spread:.1%}"]
            rows.append([*row, f"{peer.tflops:.3f}", "", f"{peer.max_difference:.1e}", ""])
    failed_names = {r.plan["scheduler"] for r in results if failed(r)}
    for row, line in zip(rows, aligned(rows), strict=True):
        yield line + "  FAILED" * (row[0] in failed_names)
    yield f"\nspread: (max - min) / median of {results[0].iterations} runs"
    for r in results:
        if peer := r.peer:
            yield (
                f"{r.plan['scheduler']}: {peer.ratio:.3f}x {peer.name}, and "
                f"{r.tflops / peer.matmul_tflops:.0%} of the {peer.matmul_tflops:.3f} TFLOP/s of "
                f"torch's matrix product; max error of {peer.name}: its difference from ours"
            )
    if results[0].verification:
        yield "errors: out and lse of sampled rows of every kind of sequence, against float64"


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Rows of text in columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip()


def failed(result: Result) -> bool:
    """Whether a result was verified and is wrong."""
    return result.verification is not None and not result.verification.passed


def info_table(info: dict[str, Any]) -> Iterable[str]:
    """Lines of text: what `exactile.info` found."""
    rows = {"version": info["version"], "headers": info["include_dir"]}
    rows["processor"] = processor_name()
    for name, backend in info["backends"].items():
        rows[name] = f"not available: {backend['reason']}" if backend["reason"] else "available"
        if backend.get("isa"):
            isas = ", ".join(backend["isas"])
            rows[name] += f": {backend['isa']} (of {isas}), {backend['threads']} threads"
        rows |= _DETAILS[name](backend) if name in _DETAILS else {}
    for name, text in rows.items():
        yield f"{name:<13} {text}"


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
