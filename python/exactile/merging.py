"""Attention over disjoint sets of keys, merged by the log-sum-exp of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, overload

from exactile import _core, _sycl
from exactile._arguments import eager
from exactile._arrays import Results, canonical_dtype, host_results_of
from exactile._device import BACKEND_OF_DEVICE, cuda_results_of
from exactile.threads import get_num_threads

ArrayT = TypeVar("ArrayT")


@overload
def merge(
    out_a: Sequence[ArrayT],
    lse_a: Sequence[Any],
    *,
    out: Any = None,
    return_lse: Literal[False] = False,
    stream: Any = None,
    dtype: Any = None,
) -> ArrayT: ...


@overload
def merge(
    out_a: Sequence[ArrayT],
    lse_a: Sequence[Any],
    *,
    out: Any = None,
    return_lse: Literal[True],
    stream: Any = None,
    dtype: Any = None,
) -> tuple[ArrayT, Any]: ...


@overload
def merge(
    out_a: ArrayT,
    lse_a: Any,
    out_b: Any,
    lse_b: Any,
    *,
    out: Any = None,
    return_lse: Literal[False] = False,
    stream: Any = None,
    dtype: Any = None,
) -> ArrayT: ...


@overload
def merge(
    out_a: ArrayT,
    lse_a: Any,
    out_b: Any,
    lse_b: Any,
    *,
    out: Any = None,
    return_lse: Literal[True],
    stream: Any = None,
    dtype: Any = None,
) -> tuple[ArrayT, Any]: ...


@eager
def merge(
    out_a: Any,
    lse_a: Any,
    out_b: Any = None,
    lse_b: Any = None,
    *,
    out: Any = None,
    return_lse: bool = False,
    stream: Any = None,
    dtype: Any = None,
) -> Any:
    """Attention over all keys, from attention of the same queries over disjoint sets of them.

    What `exactile.varlen_prefill` and `Plan.run` return with ``return_lse=True`` for each set of
    keys, or any other attention that gives the log-sum-exp of its scores. Two results, or any
    number from one on as two lists: ``merge([out_a, out_b, ...], [lse_a, lse_b, ...])``.

    Parameters
    ----------
    out_a, out_b : array, shape (total_q, num_heads, head_dim_v)
        float32, float16 or bfloat16, all alike; numpy, torch, CuPy, dpnp or DLPack, on the CPU, a
        GPU or a SYCL device. Strides are free but for the last dimension, which is contiguous. On
        CUDA at most 68 results.
    lse_a, lse_b : float32 array, shape (num_heads, total_q)
        Natural logarithm, any strides. -inf where a row saw no key: what such a row of the result
        holds, even NaN, does not matter.
    out : array, shape (total_q, num_heads, head_dim_v), optional
        Written and returned instead of a new array. It shares no element with what is merged, but
        may be exactly one of the results, which is overwritten then. Torch sees the write.
    return_lse : bool
        Also return the log-sum-exp over all keys.
    stream : int or stream object, optional
        As `exactile.Plan.run`.
    dtype : str or dtype, optional
        ``"bfloat16"`` where the results are its storage as uint16. Default: that of the first.

    Returns
    -------
    out : array, shape (total_q, num_heads, head_dim_v)
        ``sum(exp(lse_i - lse) * out_i)``, of the library and dtype of the first result. A row that
        one part alone saw keys for is that part's, bit for bit; one that none did is 0.
    lse : float32 array, shape (num_heads, total_q)
        With `return_lse`: ``log(sum(exp(lse_i)))``; -inf for rows that saw no key.

    Raises
    ------
    ValueError
        Arrays that do not fit one another, or that require grad while gradients are recorded;
        nothing has been written.
    TypeError
        An argument is no array that can be used, or lists and arrays are mixed.
    RuntimeError
        As `exactile.Plan.run`.

    Notes
    -----
    Summed in float32, in the order of the parts: the same call gives the same bits, whatever the
    threads. A log-sum-exp of +inf or NaN makes its row NaN, and no other.

    References
    ----------
    arXiv:2501.01005 (FlashInfer), section 2.2: attention states and their composition.

    Examples
    --------
    >>> import numpy as np, exactile
    >>> q = np.ones((3, 4, 64), np.float32)
    >>> k = v = np.ones((5, 2, 64), np.float32)
    >>> first = exactile.varlen_prefill(q, k[:2], v[:2], [0, 3], [0, 2], return_lse=True)
    >>> rest = exactile.varlen_prefill(q, k[2:], v[2:], [0, 3], [0, 3], return_lse=True)
    >>> exactile.merge(*first, *rest).shape
    (3, 4, 64)
    """
    names, outs, lses = _parts(out_a, lse_a, out_b, lse_b)
    given = "" if dtype is None else canonical_dtype(dtype, "merge")
    shape, found, device = _core.merge_info(outs[0], names[0], given)
    results = _results(device, outs[0], stream)
    merged = results.empty(outs[0], shape, given or found) if out is None else out
    lse = results.empty(outs[0], (shape[1], shape[0]), "float32") if return_lse else None
    _core.merge(
        names,
        outs,
        lses,
        merged,
        lse,
        given or found,
        results.stream,
        out is not None,
        get_num_threads(),
    )
    if out is None:
        merged = results.give_back(merged, outs[0])
    return (merged, results.give_back(lse, outs[0])) if return_lse else merged


def _parts(
    out_a: Any, lse_a: Any, out_b: Any, lse_b: Any
) -> tuple[list[str], list[Any], list[Any]]:
    """(names of results and log-sum-exps in turn, results, log-sum-exps)."""
    lists = [isinstance(x, (list, tuple)) for x in (out_a, lse_a)]
    if not any(lists):
        if out_b is None or lse_b is None:
            missing = "out_b" if out_b is None else "lse_b"
            raise TypeError(
                f"merge: expected out_b and lse_b beside out_a and lse_a, got no {missing}; any "
                "other number of results is merged as two lists"
            )
        return ["out_a", "lse_a", "out_b", "lse_b"], [out_a, out_b], [lse_a, lse_b]
    if not all(lists) or out_b is not None or lse_b is not None:
        kinds = ", ".join(type(x).__name__ for x in (out_a, lse_a, out_b, lse_b) if x is not None)
        raise TypeError(
            "merge: expected two lists, of results and of their log-sum-exps, or out_a, lse_a, "
            f"out_b and lse_b, got {kinds}"
        )
    if not out_a or len(out_a) != len(lse_a):
        raise ValueError(
            "merge: expected at least one result and a log-sum-exp for each, got "
            f"{len(out_a)} results and {len(lse_a)} log-sum-exps"
        )
    names = [f"{name}[{i}]" for i in range(len(out_a)) for name in ("out_a", "lse_a")]
    return names, list(out_a), list(lse_a)


def _results(device: int, x: Any, stream: Any) -> Results:
    """Where results beside `x` come from, which lies on a device of DLPack's type `device`."""
    backend = BACKEND_OF_DEVICE[device]
    if backend == "sycl":
        return _sycl.results_of("merge", x, stream)
    if backend == "cuda":
        return cuda_results_of("merge", x, stream)
    return host_results_of("merge", stream)
