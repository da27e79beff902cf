"""The CPU quota of the control groups that this process is in (Linux, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath


@cache
def cpu_quota(root: str = "/") -> float | None:
    """CPUs' worth of time that the process may use; None: no limit. Read once per process.

    Parameters
    ----------
    root : str
        Where ``proc`` and the mounted hierarchies are looked for.
    """
    quotas = [quota for folder in _folders(Path(root)) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _folders(root: Path) -> Iterator[Path]:
    """Groups of the process that may hold a CPU quota, each with its ancestors."""
    paths = _paths(root)
    for mount_root, mount_point, version in _mounts(root):
        top = root / mount_point.lstrip("/")
        path = PurePosixPath(paths.get(version, "/"))
        # In a container without a namespace of its own the path is the host's: cut off what the
        # mount leaves out, and go on from its top where that does not fit.
        inside = path.relative_to(mount_root) if path.is_relative_to(mount_root) else None
        folder = top / inside if inside is not None else top
        while folder != top:
            yield folder
            folder = folder.parent
        yield top


def _paths(root: Path) -> dict[int, str]:
    """Version of the hierarchy -> path of the process in it."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not path:
            continue
        if not controllers:
            paths[2] = path
        elif "cpu" in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(root: Path) -> Iterator[tuple[str, str, int]]:
    """(root inside the hierarchy, mount point, version) of those that hold CPU quotas."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, filesystem = line.partition(" - ")
        if len(mount.split()) < 5 or len(filesystem.split()) < 3:
            continue
        mount_root, mount_point = mount.split()[3:5]
        kind, _, options = filesystem.split()[:3]
        if kind == "cgroup2":
            yield mount_root, mount_point, 2
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield mount_root, mount_point, 1


def _quota_of(folder: Path) -> float | None:
    v2 = [word for line in _lines(folder / "cpu.max") for word in line.split()]
    if len(v2) == 2:
        quota, period = v2
    else:
        quota = "".join(_lines(folder / "cpu.cfs_quota_us"))
        period = "".join(_lines(folder / "cpu.cfs_period_us"))
    if not quota.isdecimal() or not period.isdecimal():  # "max" and -1: no limit
        return None
    return int(quota) / int(period) if int(period) > 0 else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
