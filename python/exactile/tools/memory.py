"""Memory: what a command needs, what there is, and an error before it runs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exactile.planning import Plan

_SEQUENCE_BYTES = 128
"""Of a sequence: its lengths while they are drawn, added up and shown (measured: 85 to 116)."""

_RECORD_BYTES = 36
"""Of a record: itself, and what the planner sorts it by (measured)."""

_TILE_ROWS = 128
"""Rows of the smallest tile."""


def expect_memory(
    option: str, what: str, needed: int, available: int | None, where: str = "memory"
) -> None:
    """Raise unless `needed` bytes are available, where that is known.

    Parameters
    ----------
    option, what, where : str
        For the message: who asked for how much of what, and where it is to lie.
    needed, available : int
        Bytes. None: unknown.

    Raises
    ------
    MemoryError
        There is less; the message has both figures.
    """
    if available is not None and needed > available:
        raise MemoryError(
            f"{option}: expected at most the {available / 2**30:,.1f} GiB of {where} that are "
            f"available for {what}, got about {needed / 2**30:,.1f} GiB"
        )


def sequences_bytes(batch: int) -> int:
    """Bytes that the lengths of a batch take, from drawing to the summary of its plan."""
    return batch * _SEQUENCE_BYTES


def records_bytes(total_q: int, batch: int, heads_per_tile: int) -> int:
    """Bytes that planning takes at most, for a list of tiles."""
    tile_tokens = max(1, _TILE_ROWS // heads_per_tile)
    return (total_q // tile_tokens + batch) * _RECORD_BYTES


def key_rows(plan: Plan) -> int:
    """Keys that memory is allocated for: those of the sequences, or of all their pages."""
    keys = plan.seqlens.k.astype(np.int64)
    if plan.page_size:
        keys = -(-keys // plan.page_size) * plan.page_size
    return int(keys.sum())


def tensors_bytes(plan: Plan) -> int:
    """Bytes of q, k, v, out and lse."""
    total_q = int(plan.seqlens.q.sum(dtype=np.int64))
    total_k = key_rows(plan)
    q_and_out = total_q * plan.num_heads_q * (plan.head_dim + plan.head_dim_v)
    k_and_v = total_k * plan.num_heads_kv * (plan.head_dim + plan.head_dim_v)
    itemsize = 4 if plan.dtype == "float32" else 2
    return (q_and_out + k_and_v) * itemsize + 4 * total_q * plan.num_heads_q


def verification_bytes(plan: Plan) -> int:
    """Bytes that comparing sampled rows takes on the host: one head of the longest sequence."""
    return int(plan.seqlens.k.max(initial=0)) * (plan.head_dim + plan.head_dim_v + 64) * 12


def comparison_bytes(plan: Plan) -> int:
    """Bytes that comparing all of a peer's output takes on the host."""
    total_q = int(plan.seqlens.q.sum(dtype=np.int64))
    return total_q * plan.num_heads_q * plan.head_dim_v * 32


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that can be had without swapping; None where that is unknown."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    if "MemAvailable" not in fields:
        return None
    return min([int(fields["MemAvailable"].split()[0]) << 10, *_left_in_cgroups(root)])


def _left_in_cgroups(root: Path) -> list[int]:
    """What the limits of this process's control groups leave, and of those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            base, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            try:
                left.append(_left(root / base / folder, *names))
            except (OSError, ValueError, KeyError):  # no limit ("max"), or not to be seen here
                continue
    return left


def _left(folder: Path, limit: str, usage: str, reclaimable: str) -> int:
    """Limit less usage; pages of files that were read count as free."""
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    used = int((folder / usage).read_text()) - int(stat[reclaimable])
    return max(0, int((folder / limit).read_text()) - used)
