"""Timeline: what every work-group of a CUDA launch did, where and when.

The kernels are those of `Plan.run`, compiled with a probe (``exactile/cuda/probe.hpp``) that writes
a record for every tile, and for every work-group that found none.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from exactile.planning import Plan
from exactile.tools.machines import Gpu

_NUMBERS = ("q_begin", "q_end", "k_begin", "k_len", "head", "work_group", "sm", "times_written")
RECORD = np.dtype(
    [(f"{name}_ns", np.int64) for name in ("prologue", "mainloop", "epilogue", "end")]
    + [(name, np.int32) for name in _NUMBERS]
)
"""TimelineRecord of ``exactile/cuda/params.hpp``."""

PHASES = ("prologue", "main loop", "epilogue", "empty")
"""Of a tile: waiting for it and its Q (sm80: for it alone); its keys; its stores. Of a work-group
that finds no tile: all of it."""


class Slices(NamedTuple):
    """What is drawn: one phase of one record each, arrays of one length."""

    begin_ns: npt.NDArray[np.int64]
    """From the launch's first."""
    end_ns: npt.NDArray[np.int64]
    phase: npt.NDArray[np.int64]
    """Index in `PHASES`."""
    sm: npt.NDArray[np.int64]
    lane: npt.NDArray[np.int64]
    """0, or which of the work-groups that share an SM at a time."""
    record: npt.NDArray[np.int64]
    """Index in `Timeline.records`."""


@dataclass(frozen=True)
class Timeline:
    """One launch of a plan.

    Attributes
    ----------
    plan : Plan
    num_sms : int
        Of the device.
    records : ndarray of RECORD
        Those that were written, by the time they begin. Without a tile head is -1.

    Raises
    ------
    RuntimeError
        Records that no correct launch writes.
    """

    plan: Plan
    num_sms: int
    records: npt.NDArray[Any]

    def __post_init__(self) -> None:
        by = (self.records[name] for name in ("work_group", "end_ns", "prologue_ns"))
        order = np.lexsort(tuple(by))
        object.__setattr__(self, "records", self.records[order])
        records, tiles = self.records, self.tiles
        times = [tiles[name] for name in RECORD.names[:4]] if RECORD.names else []
        planned = self.plan.valid  # 0: the lengths are on the device, unknown
        checks = {
            "every tile once": (records["times_written"] == 1).all(),
            f"{planned:,} tiles": planned in (0, tiles.size),
            "phases in order": all((x <= y).all() for x, y in itertools.pairwise(times)),
            f"SMs below {self.num_sms}": (records["sm"] < self.num_sms).all(),
            "a record": records.size > 0,
        }
        for expected, holds in checks.items():
            if not holds:
                raise RuntimeError(f"timeline of {self.plan.scheduler}: expected {expected}")

    @property
    def tiles(self) -> npt.NDArray[Any]:
        """Records of tiles."""
        return self.records[self.records["head"] >= 0]

    @property
    def num_empty(self) -> int:
        """Work-groups that found no tile."""
        return int((self.records["head"] < 0).sum())

    @property
    def launched(self) -> int:
        """Work-groups, as they reported themselves."""
        return int(np.unique(self.records["work_group"]).size)

    @property
    def begin_ns(self) -> int:
        """When the first work-group began."""
        return int(self.records["prologue_ns"].min())

    @property
    def span_ns(self) -> int:
        """From the first work-group's begin to the last one's end."""
        return int(self.records["end_ns"].max()) - self.begin_ns

    @property
    def timer_step_ns(self) -> int:
        """What all times are a multiple of: how coarsely the device's clock ticks."""
        slices = self.slices()
        return int(np.gcd.reduce(np.concatenate([slices.begin_ns, slices.end_ns])))

    def slices(self) -> Slices:
        """Every phase of every record, by time of begin."""
        records, lanes = self.records, self._lanes()
        times = np.stack([records[f"{x}_ns"] for x in ("prologue", "mainloop", "epilogue", "end")])
        times -= self.begin_ns
        tiles, empty = np.flatnonzero(records["head"] >= 0), np.flatnonzero(records["head"] < 0)
        index = np.concatenate([tiles, tiles, tiles, empty])
        phase = np.repeat(np.arange(4), [tiles.size, tiles.size, tiles.size, empty.size])
        begin = times[np.where(phase == 3, 0, phase), index]
        end = times[np.where(phase == 3, 3, phase + 1), index]
        order = np.lexsort((phase, index, begin))
        slices = Slices(begin, end, phase, records["sm"][index], lanes[index], index)
        return Slices(*(x[order].astype(np.int64) for x in slices))

    def _lanes(self) -> npt.NDArray[np.int64]:
        """Of each record: the first row of its SM that was free when its work-group began."""
        records = self.records
        groups, of_record = np.unique(records["work_group"], return_inverse=True)
        begin = np.full(groups.size, np.iinfo(np.int64).max)
        end, sm = np.zeros(groups.size, np.int64), np.zeros(groups.size, np.int64)
        np.minimum.at(begin, of_record, records["prologue_ns"])
        np.maximum.at(end, of_record, records["end_ns"])
        sm[of_record] = records["sm"]
        lanes, free_at = np.zeros(groups.size, np.int64), [list[int]() for _ in range(self.num_sms)]
        for group in np.lexsort((end, begin)):
            ends = free_at[sm[group]]
            lane = next((i for i, e in enumerate(ends) if e <= begin[group]), len(ends))
            ends[lane : lane + 1] = [end[group]]
            lanes[group] = lane
        return lanes[of_record]

    def keys(self) -> npt.NDArray[np.int64]:
        """Of each record: keys that some row of its tile sees; 0 without a tile."""
        rows = self.records
        left, right = self.plan.window
        packed = rows["q_end"] < 0  # their sequences' keys are counted together
        k_len = np.where(packed, rows["k_len"] & 0xFFFFF, rows["k_len"]).astype(np.int64)
        first = k_len - (rows["q_end"] - rows["q_begin"])  # position of the tile's first row
        last = np.minimum(first + self.plan.tile_tokens, k_len) - 1
        begin = np.maximum(first - left, 0) if left >= 0 else np.zeros_like(k_len)
        end = np.minimum(last + right + 1, k_len) if right >= 0 else k_len
        keys: npt.NDArray[np.int64] = np.where(packed, k_len, np.maximum(end - begin, 0))
        return keys

    def shares(self) -> dict[str, float]:
        """Parts of the SMs' time: `PHASES`, then idle ``between`` them and in the ``tail``.

        The tail of an SM is what follows its last work-group; what precedes its first is between.
        """
        slices = self.slices()
        rows = self.num_sms * (int(slices.lane.max()) + 1)
        last_end = np.zeros(rows, np.int64)
        np.maximum.at(last_end, slices.lane * self.num_sms + slices.sm, slices.end_ns)
        length = slices.end_ns - slices.begin_ns
        parts = {p: int(length[slices.phase == i].sum()) for i, p in enumerate(PHASES)}
        busy_until = int(last_end.sum())
        parts["between"] = busy_until - sum(parts.values())
        parts["tail"] = rows * self.span_ns - busy_until
        whole = max(1, rows * self.span_ns)
        return {part: ns / whole for part, ns in parts.items()}


def record(plan: Plan, data: Sequence[npt.NDArray[Any]], gpu: Gpu) -> Timeline:
    """Run a plan with the recording kernels, twice: the first run loads or compiles them.

    Parameters
    ----------
    plan : Plan
        Of the CUDA backend.
    data : q, k and v
        numpy arrays as for `Plan.run`; bfloat16 is uint16 storage.
    gpu : Gpu
        Where to run.

    Raises
    ------
    RuntimeError
        The kernels are not there and cannot be compiled, or what they recorded cannot be.
    ValueError
        The batch is too large for a record of each (head, token).
    """
    torch, core = gpu.torch, plan._core
    if plan.launched == 0:
        raise ValueError("timeline: expected work-groups to launch, got none")
    q, k, v = (gpu.put(x) for x in data)
    out = torch.empty(
        (core.total_q, plan.num_heads_q, plan.head_dim_v), dtype=q.dtype, device="cuda"
    )
    memory = torch.zeros((core.timeline_bytes // 8,), dtype=torch.int64, device="cuda")

    def run() -> None:
        memory.zero_()
        stream = torch.cuda.current_stream().cuda_stream
        core.run(
            q,
            k,
            v,
            out,
            stream=stream,
            timeline=memory.data_ptr(),
            timeline_bytes=core.timeline_bytes,
        )

    for _ in range(2):
        gpu.milliseconds(run, plan.bytes)
    rows = memory.view(-1, RECORD.itemsize // 8)
    written = rows[rows[:, 0] != 0].cpu().numpy()
    return Timeline(plan, gpu.num_sms, np.ascontiguousarray(written).view(RECORD).reshape(-1))


def write_trace(timelines: Sequence[Timeline], file: IO[str], command: str) -> None:
    """Write Chrome's trace format, which Perfetto reads: a process per launch, a track per SM.

    Parameters
    ----------
    timelines : sequence of Timeline
        Each begins at 0.
    file : text file
    command : str
        Recorded in it.
    """
    about = {
        "command": command,
        "launches": [
            {
                "scheduler": timeline.plan.scheduler,
                "launched": timeline.launched,
                "tiles": len(timeline.tiles),
                "empty": timeline.num_empty,
                "span_ns": timeline.span_ns,
                "timer_step_ns": timeline.timer_step_ns,
                "shares": {name: round(x, 4) for name, x in timeline.shares().items()},
            }
            for timeline in timelines
        ],
    }
    file.write('{"displayTimeUnit": "ns", "otherData": ' + json.dumps(about))
    file.write(',\n"traceEvents": [\n')
    events = (
        json.dumps(event, separators=(",", ":"))
        for process, timeline in enumerate(timelines)
        for event in _events(process, timeline)
    )
    for i, event in enumerate(events):
        file.write((",\n" if i else "") + event)
    file.write("\n]}\n")


def _events(process: int, timeline: Timeline) -> Iterator[dict[str, Any]]:
    """The events of one launch; times in microseconds, as the format has them."""
    slices, keys, records = timeline.slices(), timeline.keys(), timeline.records
    yield _name("process_name", process, 0, timeline.plan.scheduler)
    tracks = np.unique(slices.lane * timeline.num_sms + slices.sm)
    for track in tracks.tolist():
        lane, sm = divmod(track, timeline.num_sms)
        yield _name("thread_name", process, track, f"SM {sm}" + (f" ({lane + 1})" if lane else ""))
        yield {
            "ph": "M",
            "name": "thread_sort_index",
            "pid": process,
            "tid": track,
            "args": {"sort_index": sm * (int(slices.lane.max()) + 1) + lane},
        }
    columns = (slices.begin_ns, slices.end_ns, slices.phase, slices.sm, slices.lane, slices.record)
    for begin, end, phase, sm, lane, i in zip(*(x.tolist() for x in columns), strict=True):
        args = {"work-group": int(records["work_group"][i])}
        if phase != PHASES.index("empty"):
            args |= {name: int(records[name][i]) for name in ("head", "q_begin")}
            args["keys"] = int(keys[i])
        yield {
            "ph": "X",
            "name": PHASES[phase],
            "pid": process,
            "tid": lane * timeline.num_sms + sm,
            "ts": begin / 1e3,
            "dur": (end - begin) / 1e3,
            "args": args,
        }


def _name(kind: str, process: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": {"name": name}}
