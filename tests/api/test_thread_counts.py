"""How many threads plans are made for: what was set, torch, OpenMP, control groups."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import exactile
from abilities import require
from exactile import _cgroup, threads


def test_set_num_threads():
    before = exactile.get_num_threads()
    try:
        exactile.set_num_threads(np.int64(3))
        assert exactile.get_num_threads() == 3
        assert type(exactile.get_num_threads()) is int
        exactile.set_num_threads(threads.MAX_THREADS)
        for wrong in (2.5, 1.5, float("nan"), float("inf"), "2", True, [1]):
            with pytest.raises(TypeError, match="expected an integer from 1 to 1024 or None, got"):
                exactile.set_num_threads(wrong)
        for wrong in (0, -1, 1025, 2**40, 2**200):
            with pytest.raises(ValueError, match="expected an integer from 1 to 1024 or None, got"):
                exactile.set_num_threads(wrong)
        assert exactile.get_num_threads() == threads.MAX_THREADS
    finally:
        exactile.set_num_threads(None)
    assert exactile.get_num_threads() == before


@pytest.mark.parametrize("text", ["many", "0", "-1", "2.5", "100000", "9" * 5000, "\u0663"])
def test_environment_variable_that_is_refused(monkeypatch, text):
    monkeypatch.setenv("EXACTILE_NUM_THREADS", text)
    with pytest.raises(
        ValueError, match="EXACTILE_NUM_THREADS: expected an integer from 1 to 1024"
    ):
        exactile.get_num_threads()


@pytest.fixture
def machine(monkeypatch):
    """Eight processors, no quota, torch not imported, nothing set."""
    monkeypatch.setattr(threads._core, "hardware_threads", lambda: 8)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("EXACTILE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_precedence(machine):
    assert exactile.get_num_threads() == 8
    machine.setenv("OMP_NUM_THREADS", "5,2")
    assert exactile.get_num_threads() == 5
    machine.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 6))
    assert exactile.get_num_threads() == 6
    machine.setenv("EXACTILE_NUM_THREADS", "9")
    assert exactile.get_num_threads() == 9
    machine.setattr(threads, "_num_threads", 10)
    assert exactile.get_num_threads() == 10


@pytest.mark.parametrize("text", ["", "many", "0", "-2", "1.5", ",3"])
def test_malformed_omp_num_threads_is_ignored(machine, text):
    machine.setenv("OMP_NUM_THREADS", text)
    assert exactile.get_num_threads() == 8


def test_torch_that_is_being_imported(machine):
    machine.setitem(sys.modules, "torch", SimpleNamespace())
    assert exactile.get_num_threads() == 8


@pytest.mark.parametrize(("quota", "want"), [(0.3, 1), (1.0, 1), (1.5, 2), (4.0, 4), (100.0, 8)])
def test_quota_lowers_what_was_not_set(machine, quota, want):
    machine.setattr(threads, "cpu_quota", lambda: quota)
    assert exactile.get_num_threads() == want
    machine.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 6))
    assert exactile.get_num_threads() == min(want, 6)
    machine.setenv("EXACTILE_NUM_THREADS", "7")
    assert exactile.get_num_threads() == 7


def test_threads_of_torch():
    require("torch")
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert (
            exactile.plan(
                [0, 9], num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float32"
            ).workers
            == 1
        )
    finally:
        torch.set_num_threads(before)


V2 = "29 23 0:26 {root} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 23 0:30 {root} {point} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "24 23 0:5 / /proc rw - proc proc rw\n"
OTHER += "33 23 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def system(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> str:
    """A root folder with what Linux says of control groups."""
    contents = {
        "proc/self/cgroup": f"5:memory:/elsewhere\n{cgroup}\n",
        "proc/self/mountinfo": f"{OTHER}\n{mounts}\n",
    }
    for name, text in (contents | files).items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return str(root)


GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "want"),
    [
        ("0::/", V2.format(root="/", point="/sys/fs/cgroup"), {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", V2.format(root="/", point="/sys/fs/cgroup"), {"cpu.max": "max 100000"}, None),
        ("0::/", V2.format(root="/", point="/sys/fs/cgroup"), {}, None),
        (
            "0::/a/b",
            V2.format(root="/", point="/sys/fs/cgroup"),
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "400000 100000"},
            2.0,
        ),
        (
            "4:cpu,cpuacct:/a",
            V1.format(root="/", point="/sys/fs/cgroup/cpu,cpuacct"),
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (  # a container that sees the host's path, its own group mounted
            "4:cpu,cpuacct:/docker/f00",
            V1.format(root="/docker/f00", point="/sys/fs/cgroup/cpu"),
            {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        (  # a namespace whose path leads out of what is mounted
            "0::/../f00",
            V2.format(root="/", point="/sys/fs/cgroup"),
            {"cpu.max": "250000 100000"},
            2.5,
        ),
        (
            "0::/\n4:cpu:/",
            V2.format(root="/", point="/sys/fs/cgroup/unified")
            + "\n"
            + V1.format(root="/", point="/sys/fs/cgroup/cpu"),
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ("0::/", V2.format(root="/", point="/sys/fs/cgroup"), {"cpu.max": "garbage"}, None),
    ],
    ids=[
        "v2",
        "v2-max",
        "v2-root",
        "v2-ancestor",
        "v1",
        "v1-container",
        "v2-outside",
        "both",
        "garbage",
    ],
)
def test_cpu_quota(tmp_path, cgroup, mounts, files, want):
    files = {f"{GROUPS}/{name}": text for name, text in files.items()}
    assert _cgroup.cpu_quota(system(tmp_path, cgroup, mounts, files)) == want


def test_cpu_quota_without_control_groups(tmp_path):
    assert _cgroup.cpu_quota(str(tmp_path)) is None
