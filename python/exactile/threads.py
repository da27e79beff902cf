"""How many CPU threads plans are made for."""

from __future__ import annotations

import os

from exactile import _core

_num_threads: int | None = None


def set_num_threads(num_threads: int | None) -> None:
    """Set the CPU threads of plans made from now on.

    Parameters
    ----------
    num_threads : int or None
        At least 1. None: ``EXACTILE_NUM_THREADS``, or as many as the process may run on.

    Raises
    ------
    ValueError
        `num_threads` is less than 1.
    """
    global _num_threads
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"set_num_threads: expected at least 1 thread, got {num_threads}")
    _num_threads = num_threads


def get_num_threads() -> int:
    """CPU threads of plans made from now on.

    Raises
    ------
    ValueError
        The environment variable ``EXACTILE_NUM_THREADS`` is not a positive integer.
    """
    if _num_threads is not None:
        return _num_threads
    wanted = os.environ.get("EXACTILE_NUM_THREADS", "")
    if not wanted:
        return _core.hardware_threads()
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"EXACTILE_NUM_THREADS: expected a positive integer, got {wanted!r}")
    return int(wanted)
