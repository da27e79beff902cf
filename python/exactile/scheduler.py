"""A tile scheduler of your own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from exactile import _core


@dataclass(frozen=True)
class Scheduler:
    """A policy in C++, compiled with the CUDA or SYCL kernels on first use.

    Parameters
    ----------
    name : str
        Of the struct or class, with its namespace: ``"MyOrder"``.
    source : str
        Defines it; includes what it needs of ``<exactile/...>``. It satisfies
        ``exactile::TileScheduler`` (``exactile/scheduler/concepts.hpp`` states the duties), and its
        ``Params`` are those of the shipped policy `like`.
    like : {"ValidOnlyIndividual", "ValidOnlyPersistent", "Individual"}
        Whose Params the policy takes, and whose number of work-groups is launched: ``CompactList``
        and one per tile; ``ValidOnlyPersistent::Params`` (a list and a counter that is 0) and as
        many as run at a time; ``PaddedGrid`` and one per tile of the padded grid.

    Raises
    ------
    ValueError
        A name that is no C++ identifier, or an unknown `like`.

    Notes
    -----
    The first run compiles, and the result stays in the cache directory. CUDA: about a second, with
    NVRTC (``pip install 'exactile[jit]'``). SYCL: about three seconds, in a process of its own.
    Source that does not compile is a RuntimeError with the compiler's log, from that run.

    Examples
    --------
    >>> reverse = exactile.Scheduler("Reverse", source='''
    ... #include <exactile/scheduler/valid_only.hpp>
    ... struct Reverse : exactile::ValidOnlyIndividual {
    ...   EXACTILE_HOST_DEVICE Reverse(const Params& list, int group)
    ...       : exactile::ValidOnlyIndividual(list, list.num_tiles() - 1 - group) {}
    ... };
    ... ''')
    """

    name: str
    source: str
    like: str = "ValidOnlyIndividual"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*(::[A-Za-z_]\w*)*", self.name, re.ASCII):
            raise ValueError(f"Scheduler: expected the name of a C++ type, got {self.name!r}")
        if self.like not in _core.SCHEDULERS:
            expected = ", ".join(_core.SCHEDULERS)
            raise ValueError(f"Scheduler: like: expected one of {expected}, got {self.like!r}")
