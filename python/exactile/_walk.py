"""Walks of a user's own policy on the host: its check, and its tiles for the CPU.

The system's compiler makes a program of the policy and ``_walker.cpp``. It gets the parameters of
a plan's kernels, and prints which work-group gives which tile.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from exactile import _core
from exactile._arrays import running_sums, used_lengths
from exactile._paths import include_dir

if TYPE_CHECKING:
    from exactile.scheduler import Scheduler

_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 10
"""Of processor time for a walk, and one more for each 2 million tiles: many times what it takes."""

_FAULT = np.dtype(
    [("kind", "=i4"), ("work_group", "=i4"), ("signal", "=i4"), ("rows", "=i4", 4), ("head", "=i4")]
)
_GIVEN = np.dtype([("work_group", "=i4"), ("index", "=i4")])
_UNKNOWN_TILE, _SIGNAL = 1, 2  # Fault::kind

_Int32s = npt.NDArray[np.int32]
_Int64s = npt.NDArray[np.int64]

_programs: dict[Scheduler, Path] = {}
_unchecked: set[Scheduler] = set()  # there is no compiler for them; a warning has said so
_checked: set[tuple[object, ...]] = set()
_counts: dict[tuple[object, ...], int] = {}
_KEPT = 10_000


class Walk(NamedTuple):
    """The tiles that a plan's policy gives, by work-group, as the CPU's launch takes them."""

    begins: _Int32s  # (launched + 1,): where a work-group's tiles begin
    tiles: _Int32s  # (valid,): indices of the plan's order


class OwnPolicy:
    """What a plan does with a policy that is not shipped, before it runs for the first time."""

    def __init__(self, core: _core.Plan, scheduler: Scheduler) -> None:
        self._core, self._scheduler = core, scheduler
        self._done = False
        self._walk: Walk | None = None

    def before_run(self) -> Walk | None:
        """Check the policy; return its tiles if the plan is for the CPU.

        Raises
        ------
        ValueError
            The policy loses or doubles a tile, or does not end.
        RuntimeError
            For the CPU: no compiler, or the policy does not compile.
        """
        if not self._done:
            if self._core.backend == "cpu":
                self._walk = _tiles_of(self._core, check(self._scheduler, self._core))
            elif _is_asked_for():
                self._check_once()
            self._done = True
        return self._walk

    def _check_once(self) -> None:
        key = (self._scheduler, *_shape_of(self._core))
        if key in _checked or self._scheduler in _unchecked:
            return
        try:
            check(self._scheduler, self._core)
        except RuntimeError as error:
            _warn_unchecked(self._scheduler, error)
            return
        if len(_checked) >= _KEPT:
            _checked.clear()
        _checked.add(key)


def num_work_groups(scheduler: Scheduler, core: _core.Plan) -> int:
    """How many work-groups a policy wants launched for a plan made with the policy it is like.

    Where it does not compile for the host, as many as that one; a warning says so, once, unless
    the plan is for the CPU, whose run will raise.

    Raises
    ------
    ValueError
        A number that cannot be launched, or none: it crashes or does not end.
    """
    key = (scheduler, *_shape_of(core))
    if key not in _counts:
        if scheduler in _unchecked:
            return core.launched
        try:
            count = int(_outcome(scheduler, core, "count")[:4].view(np.int32)[0])
        except RuntimeError as error:
            if core.backend != "cpu":
                _warn_unchecked(scheduler, error)
            return core.launched
        if not 0 <= count < 1 << 30:
            raise ValueError(
                f"Scheduler {scheduler.name}: expected num_work_groups() from 0 to 2^30 - 1, got "
                f"{count}"
            )
        if len(_counts) >= _KEPT:
            _counts.clear()
        _counts[key] = count
    return _counts[key]


def _warn_unchecked(scheduler: Scheduler, error: RuntimeError) -> None:
    _unchecked.add(scheduler)
    about, *log = str(error).splitlines()
    first = next((line for line in log if "error" in line), "")
    text = f"not checked, and launched as {scheduler.like}: {about} {first}".strip()
    warnings.warn(text, RuntimeWarning, stacklevel=5)


def check(scheduler: Scheduler, core: _core.Plan) -> npt.NDArray[np.void]:
    """Walk a policy over a plan, one work-group after the other and in turn; return the latter.

    Raises
    ------
    ValueError
        Names the first tile that is lost, doubled or not there, or the work-group that does not
        end; or the plan has other Params than the policy takes.
    RuntimeError
        No compiler, or the policy does not compile.
    """
    if core.policy != scheduler.like:
        raise ValueError(
            f"Scheduler {scheduler.name}: expected a plan with the Params of {scheduler.like}, got "
            f"one with those of {core.policy}"
        )
    one_by_one, in_turn = _walks(scheduler, core)
    at_a_time = f" ({min(max(2, core.workers), core.launched)} work-groups at a time)"
    for given, how in ((one_by_one, ""), (in_turn, at_a_time)):
        if fault := _find_fault(core, given):
            raise ValueError(f"Scheduler {scheduler.name}: {fault}{how}")
    return in_turn


def _is_asked_for() -> bool:
    wanted = os.environ.get("EXACTILE_CHECK_SCHEDULER", "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"EXACTILE_CHECK_SCHEDULER: expected 0 or 1, got {wanted!r}")
    return wanted != "0"


def _shape_of(core: _core.Plan) -> tuple[object, ...]:
    """The parameters of a policy, without the lengths themselves."""
    return (
        core.backend,
        core.batch,
        core.tile_tokens,
        core.tile_heads,
        core.max_m_blocks,
        core.num_records,
        core.order == "head_major",
        core.launched,
        core.workers,
    )


# --- faults -----------------------------------------------------------------------------------


def _find_fault(core: _core.Plan, given: npt.NDArray[np.void]) -> str | None:
    """What is wrong with the tiles of a walk, which are all there, or nothing."""
    counts = np.bincount(given["index"], minlength=_num_tiles(core))
    ended_early = given.size > counts.size
    wrong = np.flatnonzero(counts > 1 if ended_early else counts != 1)
    if wrong.size == 0:
        return None
    order = _order_index(core, wrong)
    first = int(np.argmin(order))
    index = int(wrong[first])
    tile = f"tile {order[first]} ({_describe(core, index)})"
    if counts[index] == 0:
        return f"{tile} was given by no work-group"
    one, other = given["work_group"][given["index"] == index][:2]
    if one != other:
        return f"{tile} was given twice, by work-groups {one} and {other}"
    end = f"; its walk was ended after {given.size} tiles" if ended_early else ""
    return f"{tile} was given twice, by work-group {one} both times{end}"


def _m_blocks(core: _core.Plan) -> _Int64s:
    """(batch,) of each sequence, where sequences share none."""
    lengths = used_lengths(core)[0].astype(np.int64)
    return -(-lengths // core.tile_tokens)


def _num_tiles(core: _core.Plan) -> int:
    """With lengths on a GPU, those of the lengths that stand in for them."""
    records = len(core.records) or int(_m_blocks(core).sum())
    return records * core.tile_heads


def _places(core: _core.Plan, record: _Int64s) -> tuple[_Int64s, _Int64s]:
    """(sequence, m_block) of records."""
    cu_q = core.cu_seqlens_q
    if len(core.records):
        q_begin = core.records[record, 0]
        sequence = np.searchsorted(cu_q, q_begin, "right") - 1
        return sequence, (q_begin - cu_q[sequence]) // core.tile_tokens
    begins = running_sums(_m_blocks(core))
    sequence = np.searchsorted(begins, record, "right") - 1
    return sequence, record - begins[sequence]


def _order_index(core: _core.Plan, index: _Int64s) -> _Int64s:
    """Indices of the plan's TileOrder, from record * heads + head."""
    record, head = np.divmod(index, core.tile_heads)
    if not core.has_list:
        sequence, m_block = _places(core, record)
        return (sequence * core.tile_heads + head) * core.max_m_blocks + m_block
    if core.order == "head_major":
        return head * (_num_tiles(core) // core.tile_heads) + record
    return np.asarray(index, np.int64)


def _describe(core: _core.Plan, index: int) -> str:
    record, head = divmod(index, core.tile_heads)
    (sequence,), (m_block,) = _places(core, np.array([record]))
    if len(core.records) and core.records[record, 1] < 0:
        return f"from sequence {sequence} on, head {head}"
    return f"sequence {sequence}, m_block {m_block}, head {head}"


def _tiles_of(core: _core.Plan, given: npt.NDArray[np.void]) -> Walk:
    by_work_group = np.argsort(given["work_group"], kind="stable")
    tiles = _order_index(core, given["index"][by_work_group].astype(np.int64))
    sizes = np.bincount(given["work_group"], minlength=core.launched)
    begins = running_sums(sizes)
    return Walk(begins.astype(np.int32), tiles.astype(np.int32))


# --- the program ------------------------------------------------------------------------------


def _walks(scheduler: Scheduler, core: _core.Plan) -> tuple[npt.NDArray[np.void], ...]:
    """(one work-group after the other, in turn), each of `_GIVEN`."""
    outcome = _outcome(scheduler, core)
    walks, offset = [], 0
    for _ in range(2):
        size = int(np.frombuffer(outcome, np.int64, 1, offset)[0])
        walks.append(np.frombuffer(outcome, _GIVEN, size, offset + 8))
        offset += 8 + size * _GIVEN.itemsize
    return tuple(walks)


def _outcome(scheduler: Scheduler, core: _core.Plan, *arguments: str) -> npt.NDArray[np.uint8]:
    """What the program of a policy writes of a plan."""
    seconds = _SECONDS + _num_tiles(core) // 2_000_000
    on_gpu = core.has_list and len(core.records) == 0
    request = np.array(
        [
            core.batch,
            core.tile_tokens,
            core.tile_heads,
            core.max_m_blocks,
            core.order == "head_major",
            len(core.records),
            core.num_records if on_gpu else 0,
            core.launched,
            core.workers,
            seconds,
            core.page_size > 0,
        ],
        np.int32,
    )
    lists = (request, core.cu_seqlens_q, core.cu_seqlens_k, *used_lengths(core), core.records)
    try:
        done = subprocess.run(
            [str(_program(scheduler)), *arguments],
            input=b"".join(x.tobytes() for x in lists),
            capture_output=True,
            timeout=30 * seconds,  # one that sleeps takes no processor time
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"Scheduler {scheduler.name}: its walk does not end") from None
    if done.returncode != 0 or len(done.stdout) < _FAULT.itemsize:
        how = f"code {done.returncode}"
        if done.returncode < 0:
            how = signal.Signals(-done.returncode).name
        raise ValueError(f"Scheduler {scheduler.name}: its walk ended with {how}")
    _raise_fault(scheduler, core, np.frombuffer(done.stdout, _FAULT, 1)[0])
    return np.frombuffer(done.stdout, np.uint8, offset=_FAULT.itemsize)


def _raise_fault(scheduler: Scheduler, core: _core.Plan, fault: np.void) -> None:
    who = f"Scheduler {scheduler.name}: work-group {fault['work_group']}"
    if fault["work_group"] < 0:
        who = f"Scheduler {scheduler.name}: num_work_groups()"
    if fault["kind"] == _UNKNOWN_TILE:
        q_begin, q_end, k_begin, k_len = fault["rows"].tolist()
        raise ValueError(
            f"{who} gave a tile that is not there: q_begin {q_begin}, q_end {q_end}, k_begin "
            f"{k_begin}, k_len {k_len}, head {fault['head']} of {core.tile_heads}"
        )
    if fault["kind"] == _SIGNAL and fault["signal"] == signal.SIGXCPU:
        raise ValueError(f"{who} does not end")
    if fault["kind"] == _SIGNAL:
        raise ValueError(f"{who} crashed ({signal.Signals(fault['signal']).name})")


def _program(scheduler: Scheduler) -> Path:
    """The compiled walk of a policy; its folder is this process's alone."""
    program = _programs.get(scheduler)
    if program is None or not program.exists():
        program = _programs[scheduler] = _compile(scheduler)
    return program


def _compile(scheduler: Scheduler) -> Path:
    command = _compiler(scheduler)
    folder = Path(tempfile.mkdtemp(prefix="exactile-"))
    atexit.register(_remove, folder, os.getpid())
    text = f'#line 1 "{scheduler.name}"\n{scheduler.source}\n'
    (folder / "exactile_policy.hpp").write_text(text, "utf-8")
    done = subprocess.run(
        [
            *command,
            *("-std=c++20", "-O1", "-w"),
            *("-I", str(folder), "-I", include_dir()),
            f"-DEXACTILE_POLICY={scheduler.name}",
            f"-DEXACTILE_LIKE=exactile::{scheduler.like}",
            str(Path(__file__).parent / "_walker.cpp"),
            *("-o", str(folder / "walker")),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"Scheduler {scheduler.name}: does not compile for the host with {command[0]}:\n"
            + done.stderr.decode(errors="replace").strip()
        )
    return folder / "walker"


def _compiler(scheduler: Scheduler) -> list[str]:
    """$CXX, or the first that there is."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in [wanted] if wanted else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]):
            return command
    names = wanted[0] if wanted else ", ".join(_COMPILERS)
    raise RuntimeError(
        f"Scheduler {scheduler.name}: no C++ compiler to walk it on the host (looked for {names}): "
        "install g++ 11 or clang 15, or newer, or set CXX"
    )


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child leaves it to its parent
        shutil.rmtree(folder, ignore_errors=True)
