"""The number of CPU threads: set_num_threads, get_num_threads and their default."""

from __future__ import annotations

import math
import operator
import os
import sys
from typing import SupportsIndex

from exactile import _core
from exactile._cgroup import cpu_quota

MAX_THREADS: int = _core.MAX_THREADS
"""A run never gets more threads, whatever it asks for, nor more than it has tiles."""

_num_threads: int | None = None


def set_num_threads(num_threads: SupportsIndex | None) -> None:
    """Set the CPU threads of plans made from now on.

    Parameters
    ----------
    num_threads : int or None
        From 1 to `MAX_THREADS`, 1024. None: what `get_num_threads` finds.

    Raises
    ------
    ValueError
        `num_threads` is out of range.
    TypeError
        `num_threads` is no integer.

    Notes
    -----
    Threads are started when a run first needs them, and kept. A run raises RuntimeError, and writes
    nothing, where the system refuses to start them.
    """
    global _num_threads
    if num_threads is None:
        _num_threads = None
        return
    expected = f"set_num_threads: expected an integer from 1 to {MAX_THREADS} or None, got"
    try:
        wanted = operator.index(num_threads)
    except TypeError:
        raise TypeError(f"{expected} {num_threads!r}") from None
    if isinstance(num_threads, bool):
        raise TypeError(f"{expected} {num_threads!r}")
    if not 1 <= wanted <= MAX_THREADS:
        raise ValueError(f"{expected} {wanted}")
    _num_threads = wanted


def get_num_threads() -> int:
    """CPU threads of plans made from now on.

    The first of these that is there:

    1. `set_num_threads`;
    2. the environment variable ``EXACTILE_NUM_THREADS``;
    3. ``torch.get_num_threads()``, when torch is imported;
    4. the environment variable ``OMP_NUM_THREADS`` (of a list the first; ignored when malformed);
    5. the processors that the process may run on (its affinity).

    The last three are lowered to the CPU quota of the process's control groups, rounded up, which
    torch does not see: more threads would only be stopped by it.

    Raises
    ------
    ValueError
        ``EXACTILE_NUM_THREADS`` is not an integer from 1 to `MAX_THREADS`.
    """
    if _num_threads is not None:
        return _num_threads
    text = os.environ.get("EXACTILE_NUM_THREADS", "")
    if text:
        wanted = _positive(text)
        if not wanted or wanted > MAX_THREADS:
            raise ValueError(
                f"EXACTILE_NUM_THREADS: expected an integer from 1 to {MAX_THREADS}, got {text!r}"
            )
        return wanted
    quota = cpu_quota()
    limit = MAX_THREADS if quota is None else min(MAX_THREADS, max(1, math.ceil(quota)))
    return min(limit, _torch_threads() or _omp_threads() or _core.hardware_threads())


def _torch_threads() -> int | None:
    # Without the function torch is being imported, by another thread or around us.
    get = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return None if get is None else int(get())


def _omp_threads() -> int | None:
    return _positive(os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip())


def _positive(text: str) -> int | None:
    """The positive integer that `text` is; None: it is none, or one beyond any sense."""
    return int(text) or None if text.isascii() and text.isdecimal() and len(text) < 10 else None
