"""`Scheduler`: a tile scheduler of the user's own, as C++ source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exactile import _core, _walk

if TYPE_CHECKING:
    from exactile.planning import Plan

_NAME = r"[A-Za-z_]\w*(?:::[A-Za-z_]\w*)*"

_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t
    char8_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public register reinterpret_cast requires return
    short signed sizeof static static_assert static_cast struct switch template this thread_local
    throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while
    xor xor_eq
    """,
    )
)


@dataclass(frozen=True)
class Scheduler:
    """A policy in C++, for every backend: compiled with the kernels, or walked for the CPU.

    Parameters
    ----------
    name : str
        Of the struct or class, with its namespace: ``"MyOrder"``.
    source : str
        Defines it; includes ``<exactile/scheduler.hpp>``. It satisfies ``exactile::TileScheduler``
        (``exactile/scheduler/concepts.hpp`` states the duties), and its ``Params`` are those of the
        shipped policy `like`.
    like : str
        One of `SCHEDULERS`, whose Params the policy takes: ``CompactList``; ``CountedList`` (a
        list, a counter that is 0, and the number of work-groups that are launched); ``PaddedGrid``.

    Raises
    ------
    ValueError
        A name that no C++ type can have, no source, or an unknown `like`.
    TypeError
        A name or source that is no str.

    Notes
    -----
    The first run compiles, and the result stays in the cache directory. CUDA: about a second, with
    NVRTC (``pip install 'exactile[jit]'``). SYCL: about three seconds, in a process of its own.
    Source that does not compile is a RuntimeError with the compiler's log, from that run.

    As many work-groups are launched as the policy's ``num_work_groups(params, workers)`` says when
    the plan is made, which compiles the policy for the host; a CountedList holds `like`'s number
    then.

    Before a policy's first run on a plan of some shape (numbers of sequences, tiles, heads,
    work-groups) it is checked as by `check`: about a second for the first plan, a few milliseconds
    for others. ``EXACTILE_CHECK_SCHEDULER=0`` leaves that out. Where there is no C++ compiler, or
    the policy does not compile for the host, a RuntimeWarning says once that it goes unchecked and
    is launched as `like`.

    On the CPU the policy runs as it was walked by the check, with all work-groups that run at a
    time taking a tile in turn, so the C++ compiler is needed there. The tiles of a work-group are
    computed by one thread, in the policy's order, with the bits of the shipped policies.

    Examples
    --------
    >>> reverse = exactile.Scheduler("Reverse", source='''
    ... #include <exactile/scheduler.hpp>
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
        for field in ("name", "source", "like"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise TypeError(f"Scheduler: expected {field} to be a str, got {value!r}")
        is_keyword = not _KEYWORDS.isdisjoint(self.name.split("::"))
        if is_keyword or not re.fullmatch(_NAME, self.name, re.ASCII):
            raise ValueError(f"Scheduler: expected the name of a C++ type, got {self.name!r}")
        if self.like not in _core.SCHEDULERS:
            expected = ", ".join(_core.SCHEDULERS)
            raise ValueError(f"Scheduler: like: expected one of {expected}, got {self.like!r}")
        if not self.source.strip():
            raise ValueError(f"Scheduler: expected source that defines {self.name}, got none")

    @classmethod
    def from_file(cls, text: str) -> Scheduler:
        """Read a policy from ``FILE:NAME`` or ``FILE:NAME:LIKE``, as the command line takes it.

        Parameters
        ----------
        text : str
            ``"my_order.hpp:MyOrder"``, ``"my_order.hpp:mine::MyOrder:ValidOnlyPersistent"``. The
            file stands alone: it includes headers of exactile, and none that lie beside it.

        Raises
        ------
        ValueError
            Other text, a file that cannot be read, or as `Scheduler`.
        """
        parts = re.fullmatch(rf"(.+?):({_NAME})(?::(\w+))?", text, re.ASCII | re.DOTALL)
        if parts is None:
            raise ValueError(
                f"Scheduler: expected FILE.hpp:NAME or FILE.hpp:NAME:LIKE, got {text!r}"
            )
        file, name, like = parts.groups()
        try:
            source = Path(file).read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(
                f"Scheduler: expected a readable file, got {file!r}: {error}"
            ) from None
        return cls(name, source, like or "ValidOnlyIndividual")

    def check(self, plan: Plan) -> None:
        """Walk the policy over a plan on the host, and see that each tile is given exactly once.

        Work-groups are walked one after the other, and then with as many at a time as the plan has
        workers, a tile each in turn: a policy with a counter meets both. Needs no device, but a C++
        compiler: ``$CXX``, else c++, g++ or clang++. With lengths on a GPU the walk is over as many
        sequences of even lengths.

        Parameters
        ----------
        plan : Plan
            For any backend, with this policy or with `like`.

        Raises
        ------
        ValueError
            Names the first tile that is lost, doubled or not there, or the work-group that crashes
            or does not end; or the plan's policy takes other Params.
        RuntimeError
            No compiler, or it refuses the policy; with its log.

        Examples
        --------
        >>> wrong.check(plan)
        ValueError: Scheduler Wrong: tile 17 (sequence 3, m_block 2, head 1) was given twice, by
        work-groups 4 and 9
        """
        _walk.check(self, plan._core)
