"""Arguments other than arrays: their types, their checks and the errors."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, Literal, TypedDict, TypeVar, cast

import numpy as np

from exactile import _core

BackendName = Literal["cpu", "cuda", "sycl"]
DtypeName = Literal["float32", "float16", "bfloat16"]
OrderName = Literal["natural", "longest_first", "sequence_major", "head_major"]
SchedulerName = Literal["auto", "Individual", "ValidOnlyIndividual", "ValidOnlyPersistent"]

_MAX_INT32 = 2**31 - 1

F = TypeVar("F", bound=Callable[..., Any])


class RunOptions(TypedDict, total=False):
    """Options of a run; documented at `Plan.run`, read in the core."""

    softmax_scale: float | None
    softcap: float | None
    sinks: Any
    alibi_slopes: Any
    block_table: Any


def takes_run_options(function: F) -> F:
    """Show the names of `RunOptions` in a signature that has them as ``**options``."""
    signature = inspect.signature(function)
    *named, options = signature.parameters.values()
    assert options.kind is inspect.Parameter.VAR_KEYWORD
    for name, kind in RunOptions.__annotations__.items():
        text = getattr(kind, "__forward_arg__", kind)  # as the other annotations are
        keyword = inspect.Parameter.KEYWORD_ONLY
        named.append(inspect.Parameter(name, keyword, default=None, annotation=text))
    function.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    return function


def eager(function: F) -> F:
    """Keep torch.compile out of `function` and of all that it calls: a graph breaks at the call."""

    @functools.wraps(function)
    def entry(*args: Any, **options: Any) -> Any:
        hook = suspend()
        if hook is None:
            return function(*args, **options)
        try:
            return function(*args, **options)
        finally:
            _core.resume_compiler(hook)

    suspend = _core.suspend_compiler
    return breaks_graphs(cast(F, entry))


def breaks_graphs(function: F) -> F:
    """Make torch.compile break its graph at a call of `function`.

    Says so as functions do that torch.compiler.disable made, for which torch is not needed. The
    call's own frame is compiled all the same, unless the function begins as that of `eager` does.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
        "exactile computes eagerly, on arrays that exist"
    )
    return function


def integer(value: Any, name: str) -> int:
    """An int of 32 bits; numpy's integers are taken, booleans are not.

    Raises
    ------
    TypeError
        `value` is no integer.
    ValueError
        It has more bits.
    """
    if type(value) is int and -_MAX_INT32 <= value <= _MAX_INT32:
        return value
    number = _index(value)
    if number is None:
        raise TypeError(f"plan: expected {name} to be an int, got {type(value).__name__}")
    if not -_MAX_INT32 <= number <= _MAX_INT32:
        raise ValueError(f"plan: expected {name} < 2^31, got {number}")
    return number


def _index(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def boolean(value: Any, name: str) -> bool:
    """A bool, of Python or numpy.

    Raises
    ------
    TypeError
        `value` is none.
    """
    if value is True or value is False or isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"plan: expected {name} to be a bool, got {type(value).__name__}")


def one_of(value: Any, name: str) -> str:
    """A string: which ones there are is checked, and said, where they are listed.

    Raises
    ------
    TypeError
        `value` is no string.
    """
    if isinstance(value, str):
        return value
    raise TypeError(f"plan: expected {name} to be a str, got {type(value).__name__}")


def window_sizes(window: Any, causal: bool) -> tuple[int, int]:
    """(left, right) of the mask, in 32 bits: a side beyond any sequence is no bound.

    Raises
    ------
    TypeError
        `window` is no sequence of integers.
    ValueError
        It has another length than 2, or a size below -1.
    """
    if type(window) is tuple and window == (-1, -1):
        return -1, (0 if causal else -1)
    try:
        sizes = [_index(size) for size in window]
    except TypeError:
        sizes = [None]
    if None in sizes:
        raise TypeError(f"plan: expected window of two ints, (left, right), got {window!r}")
    if len(sizes) != 2:
        raise ValueError(f"plan: expected window of two sizes, (left, right), got {window!r}")
    left, right = (-1 if size > _MAX_INT32 else size for size in sizes if size is not None)
    if left < -1 or right < -1:
        raise ValueError(
            f"plan: expected window sizes >= -1 (-1: unbounded), got ({left}, {right})"
        )
    return left, (0 if causal else right)
