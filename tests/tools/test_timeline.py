"""Timelines of launches that were made up: what is written, drawn and refused. Needs no GPU."""

from __future__ import annotations

import heapq
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exactile
from abilities import require
from command_line import drawn_figures
from exactile.tools import cli, machines, plot, report, timeline
from exactile.tools.timeline import PHASES, RECORD, Timeline, write_trace
from golden import CUDA_BLOCK_M, GOLDEN, ZIPF, ZIPF_GRID

NUM_SMS = 132
PADDED, TILES = ZIPF_GRID[CUDA_BLOCK_M]


def tiles_of(plan: exactile.Plan) -> list[tuple[int, ...] | None]:
    """(q_begin, q_end, k_begin, k_len, head) by index; None where the padded grid has no tile."""
    heads = range(plan.tile_heads)
    if plan.scheduler != "Individual":
        records = plan.records.tolist()
        if plan.order == "head_major":
            return [(*record, head) for head in heads for record in records]
        return [(*record, head) for record in records for head in heads]
    starts = [np.concatenate([[0], np.cumsum(lens)]).tolist() for lens in plan.seqlens]
    tiles: list[tuple[int, ...] | None] = []
    for q0, q1, k0, k1 in zip(*(x for s in starts for x in (s[:-1], s[1:])), strict=True):
        for head in heads:
            for m in range(plan.max_m_blocks):
                q = q0 + m * plan.tile_tokens
                tiles.append((q, q1, k0, k1 - k0, head) if q < q1 else None)
    return tiles


def made_up(plan: exactile.Plan, num_sms: int = NUM_SMS, per_sm: int = 1) -> Timeline:
    """A launch in which every free SM takes the next work-group, or that its next tile."""
    tiles, rows = tiles_of(plan), []
    free = [(1_000_000, slot % num_sms, slot) for slot in range(num_sms * per_sm)]
    heapq.heapify(free)
    groups: dict[int, int] = {}
    for index, tile in enumerate(tiles):
        now, sm, slot = heapq.heappop(free)
        persistent = plan.scheduler == "ValidOnlyPersistent"
        group = groups.setdefault(slot, len(groups)) if persistent else index
        if tile is None:
            end = now + 480  # every time is a multiple of 32
            rows.append((now, 0, 0, end, 0, 0, 0, 0, -1, group, sm, 1))
        else:
            *tile_rows, head = tile
            main = now + 1_536
            epilogue = main + 6 * tile[3]
            end = epilogue + 896
            rows.append((now, main, epilogue, end, *tile_rows, head, group, sm, 1))
        heapq.heappush(free, (end + (0 if persistent else 320), sm, slot))
    return Timeline(plan, num_sms, np.array(rows, RECORD))


def golden(scheduler: str, **options: Any) -> exactile.Plan:
    return exactile.plan(
        seqlens_q=ZIPF, **GOLDEN, scheduler=scheduler, backend="cuda", workers=NUM_SMS, **options
    )


@pytest.fixture(scope="module")
def launches() -> list[Timeline]:
    return [made_up(golden(scheduler, pack_gqa=False)) for scheduler in exactile.SCHEDULERS]


def small(lengths: list[int] = [300, 5], **options: Any) -> exactile.Plan:  # noqa: B006
    shape = dict(num_heads_q=2, num_heads_kv=2, head_dim=256, dtype="float16", backend="cuda")
    return exactile.plan(seqlens_q=lengths, **(shape | {"pack_gqa": False} | options))


def trace_of(launches: list[Timeline]) -> dict[str, Any]:
    file = io.StringIO()
    write_trace(launches, file, "exactile bench")
    trace: dict[str, Any] = json.loads(file.getvalue())
    return trace


def test_memory_is_one_record_for_every_work_group_and_head_and_row() -> None:
    plan = golden("Individual")
    assert plan._core.timeline_bytes == (PADDED + 32 * 13_856) * RECORD.itemsize
    too_many = small([2**30], seqlens_k=[1])
    with pytest.raises(ValueError, match="at most 2147483647 work-groups"):
        _ = too_many._core.timeline_bytes


def test_counts(launches: list[Timeline]) -> None:
    individual, valid_only, persistent = launches
    assert (individual.launched, individual.num_empty) == (PADDED, PADDED - TILES)
    assert (valid_only.launched, valid_only.num_empty) == (TILES, 0)
    assert (persistent.launched, persistent.num_empty) == (NUM_SMS, 0)
    assert [len(one.tiles) for one in launches] == [TILES] * 3
    assert [one.timer_step_ns for one in launches] == [32, 64, 64]


def test_trace_is_what_perfetto_reads(launches: list[Timeline]) -> None:
    trace = trace_of(launches)
    assert trace["displayTimeUnit"] == "ns"
    assert trace["otherData"]["command"] == "exactile bench"
    assert [x["empty"] for x in trace["otherData"]["launches"]] == [PADDED - TILES, 0, 0]
    events = trace["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == list(exactile.SCHEDULERS)
    for process, launch in enumerate(launches):
        mine = [e for e in events if e["pid"] == process]
        tracks = {e["tid"]: e["args"]["name"] for e in mine if e["name"] == "thread_name"}
        assert tracks == {sm: f"SM {sm}" for sm in range(NUM_SMS)}
        slices = [e for e in mine if e["ph"] == "X"]
        counts = Counter(e["name"] for e in slices)
        assert counts == Counter(
            dict.fromkeys(PHASES[:3], TILES) | ({"empty": PADDED - TILES} if process == 0 else {})
        )
        assert min(e["ts"] for e in slices) == 0
        assert max(e["ts"] + e["dur"] for e in slices) == pytest.approx(launch.span_ns / 1e3)
        ends = dict.fromkeys(tracks, 0.0)
        for e in slices:  # in order of time, and none begins before its track is free
            assert e["ts"] >= ends[e["tid"]] - 1e-6
            ends[e["tid"]] = e["ts"] + e["dur"]


def test_slices_say_which_tile(launches: list[Timeline]) -> None:
    plan = small([300, 5], causal=True, scheduler="ValidOnlyIndividual", order="natural")
    slices = [e for e in trace_of([made_up(plan, 1)])["traceEvents"] if e["ph"] == "X"]
    assert [e["name"] for e in slices] == [*PHASES[:3]] * 8
    keys = {e["args"]["q_begin"]: e["args"]["keys"] for e in slices}
    assert keys == {0: 128, 128: 256, 256: 300, 300: 5}
    assert [e["args"]["work-group"] for e in slices[::3]] == list(range(8))
    assert {(e["args"]["head"], e["args"]["q_begin"]) for e in slices} == {
        (head, q) for head in (0, 1) for q in keys
    }
    windowed = small([300, 5], window=(9, 3), scheduler="ValidOnlyIndividual", order="natural")
    assert made_up(windowed, 1).keys()[::2].tolist() == [131, 140, 53, 5]


def test_work_groups_that_share_an_sm() -> None:
    launch = made_up(small([3000], scheduler="ValidOnlyIndividual"), num_sms=2, per_sm=3)
    slices = launch.slices()
    assert set(slices.lane.tolist()) == {0, 1, 2}
    assert sum(launch.shares().values()) == pytest.approx(1)
    names = {
        e["args"]["name"] for e in trace_of([launch])["traceEvents"] if e["name"] == "thread_name"
    }
    assert names == {f"SM {sm}{lane}" for sm in (0, 1) for lane in ("", " (2)", " (3)")}
    for sm in (0, 1):
        for lane in range(3):
            mine = (slices.sm == sm) & (slices.lane == lane)
            assert (slices.begin_ns[mine][1:] >= slices.end_ns[mine][:-1]).all()


def test_shares(launches: list[Timeline]) -> None:
    individual, valid_only, persistent = (launch.shares() for launch in launches)
    for shares in individual, valid_only, persistent:
        assert list(shares) == [*PHASES, "between", "tail"]
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0
    whole = NUM_SMS * launches[0].span_ns
    assert individual["empty"] == pytest.approx((PADDED - TILES) * 480 / whole)
    assert valid_only["empty"] == persistent["empty"] == persistent["between"] == 0
    assert individual["between"] > valid_only["between"] > 0


def test_bins_hold_all_the_time(launches: list[Timeline]) -> None:
    for launch in launches:
        slices, bin_ns = launch.slices(), launch.span_ns / plot._TIME_BINS
        share = plot.busy_share(slices, NUM_SMS, 1, bin_ns)
        assert share.min() > -1e-9
        assert share.sum(axis=2).max() < 1 + 1e-9
        want = np.bincount(slices.phase, slices.end_ns - slices.begin_ns, len(PHASES))
        np.testing.assert_allclose(share.sum(axis=(0, 1)) * bin_ns, want)


def test_picture(launches: list[Timeline], tmp_path: Path) -> None:
    require("matplotlib")
    from matplotlib import image

    for chosen, has_empty in ((launches, True), (launches[2:], False)):
        path = tmp_path / "timeline.png"
        plot.timeline(chosen, path)
        pixels = image.imread(path)[..., :3]
        height = pixels.shape[0]
        panels = pixels[: height - 120, 200:]  # without the legend
        assert height == round(160 * (1.1 + 2.8 * len(chosen)))
        red, green, blue = np.moveaxis(panels, 2, 0)
        assert ((red - green > 0.15) & (abs(green - blue) < 0.1)).any() == has_empty


def test_panels_share_their_axes_and_name_tiles_and_backend(
    launches: list[Timeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn_figures(monkeypatch)
    plot.timeline(launches, tmp_path / "timeline.png")
    (figure,) = figures
    axes = figure.axes
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes}) == 1
    for ax, launch in zip(axes, launches, strict=True):
        plan = launch.plan
        assert ax.get_title("left") == plan.scheduler
        title = ax.get_title("right")
        assert title.startswith(f"tiles of {plan.block_m} x {plan.block_n}, cuda\n")


def changed(launch: Timeline, name: str, value: int) -> np.ndarray:
    records = launch.records.copy()
    records[name][3] = value
    return records


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("times_written", 2, "every tile once"),
        ("mainloop_ns", 1, "phases in order"),
        ("sm", 2, "SMs below 2"),
        ("head", -1, "8 tiles"),
    ],
)
def test_records_that_cannot_be(name: str, value: int, message: str) -> None:
    launch = made_up(small(scheduler="ValidOnlyIndividual"), 2)
    with pytest.raises(RuntimeError, match=f"ValidOnlyIndividual: expected {message}"):
        Timeline(launch.plan, 2, changed(launch, name, value))


# --- the command line ---------------------------------------------------------------------------

SHAPE = ["--batch=16", "--num_heads_q=32", "--num_heads_kv=8", "--seq_len_qo=1024", "--varlen"]
SHAPE += ["--varlen_dist=zipf", "--iterations=2", "--verify=0"]


@pytest.fixture
def gpu_of_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA backend that computes nothing and records what was made up."""
    info = exactile.info()
    info["backends"]["cuda"] |= {"available": True, "reason": None}
    monkeypatch.setattr(exactile, "info", lambda: info)
    monkeypatch.setattr(cli, "machine_of", lambda backend: machines.Host())
    monkeypatch.setattr(machines.Host, "milliseconds", lambda self, run, working_set: [1.0])
    monkeypatch.setattr(cli, "random_data", lambda plan, seed: tiny_data())
    monkeypatch.setattr(report, "record", lambda plan, data, machine: made_up(plan))


def tiny_data() -> Any:
    from exactile.tools.bench import Data

    return Data(*(np.zeros((1, 1, 1), np.uint16) for _ in range(3)))


@pytest.mark.usefixtures("gpu_of_sorts")
def test_bench_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require("matplotlib")
    path = tmp_path / "trace.json"
    options = [*SHAPE, "--backend=cuda", "--compare", f"--timeline={path}"]
    assert cli.main(["bench", *options]) == 0
    text = capsys.readouterr().out
    trace = json.loads(path.read_text())
    assert [x["launched"] for x in trace["otherData"]["launches"]] == [PADDED, TILES, NUM_SMS]
    assert trace["otherData"]["command"].startswith("exactile bench --batch=16")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for words in ("of 132 SMs", "every 32 ns", "tail", str(path), "trace.png"):
        assert words in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend=cpu", "--timeline=t.json"], "--timeline: expected --backend=cuda, got cpu"),
        (["--backend=cuda", "--timeline=t.png"], "--timeline: expected the name of a JSON file"),
        (["--backend=cuda", "--timeline=no/folder/t.json"], "no/folder"),
        (["--backend=cuda", "--peers"], "--peers: expected --peers=LIBRARY with --backend=cuda"),
        (["--backend=cpu", "--peers=fa3.so"], "--peers: expected no library with --backend=cpu"),
    ],
)
@pytest.mark.usefixtures("gpu_of_sorts")
def test_bad_options_measure_nothing(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    require("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "measure", lambda *_, **__: pytest.fail("measured"))
    assert cli.main(["bench", *SHAPE, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("gpu_of_sorts")
def test_no_matplotlib_is_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setattr(cli, "measure", lambda *_, **__: pytest.fail("measured"))
    options = [*SHAPE, "--backend=cuda", f"--timeline={tmp_path}/t.json"]
    assert cli.main(["bench", *options]) == 2
    assert "pip install exactile[plot]" in capsys.readouterr().err


def test_record_dtype_is_the_structs() -> None:
    """Fields of the C++ struct, in order; TileRecord is four numbers."""
    text = Path(exactile.include_dir(), "exactile/cuda/params.hpp").read_text()
    body = text[text.index("struct alignas(16) TimelineRecord {") :].partition("};")[0]
    fields = [line.split("//")[0].split() for line in body.splitlines()[1:] if ";" in line]
    sizes = {"int64_t": 8, "int32_t": 4, "TileRecord": 16}
    at, offsets = 0, {}
    for kind, name in fields:
        offsets[name.rstrip(";")] = at
        at += sizes[kind]
    assert at == RECORD.itemsize == 64
    assert RECORD.fields is not None
    ours = {name: RECORD.fields[name][1] for name in RECORD.names or ()}
    ours |= {"multiprocessor": ours["sm"], "rows": ours["q_begin"]}
    assert {name: ours[name] for name in offsets} == offsets
    assert timeline.PHASES == PHASES
