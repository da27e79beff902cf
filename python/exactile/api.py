"""Attention in one call: plan and run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from exactile import _core, _sycl
from exactile._arguments import (
    BackendName,
    OrderName,
    RunOptions,
    SchedulerName,
    eager,
    takes_run_options,
)
from exactile._arrays import canonical_dtype
from exactile._device import BACKEND_OF_DEVICE, backend_of
from exactile.planning import ArrayT, ScalarT, plan
from exactile.scheduler import Scheduler

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(RunOptions, total=False):
    """What every form of `varlen_prefill` takes."""

    seqused_q: Any
    seqused_k: Any
    max_seqlen_k: int | None
    causal: bool
    window: tuple[int, int]
    out: Any
    scheduler: SchedulerName | Scheduler
    order: OrderName | None
    pack_gqa: bool | None
    pack_sequences: bool | None
    num_splits: int | None
    backend: BackendName | None
    workers: int | None
    stream: Any
    dtype: Any


@overload
def varlen_prefill(
    q: ArrayT,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> ArrayT: ...


@overload
def varlen_prefill(
    q: npt.NDArray[ScalarT],
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[npt.NDArray[ScalarT], npt.NDArray[np.float32]]: ...


@overload
def varlen_prefill(
    q: ArrayT,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[ArrayT, ArrayT]: ...


@overload
def varlen_prefill(
    q: ArrayT,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    return_lse: bool,
    **options: Unpack[Options],
) -> ArrayT | tuple[ArrayT, ArrayT]: ...


@eager
@takes_run_options
def varlen_prefill(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    seqused_q: Any = None,
    seqused_k: Any = None,
    max_seqlen_k: int | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    out: Any = None,
    return_lse: bool = False,
    scheduler: SchedulerName | Scheduler = "auto",
    order: OrderName | None = None,
    pack_gqa: bool | None = None,
    pack_sequences: bool | None = None,
    num_splits: int | None = None,
    backend: BackendName | None = None,
    workers: int | None = None,
    stream: Any = None,
    dtype: Any = None,
    **options: Unpack[RunOptions],
) -> Any:
    """Attention over a batch of sequences that lie back to back, each attending to itself.

    Parameters
    ----------
    q : array, shape (total_q, num_heads_q, head_dim)
        float32 (CPU, SYCL), float16 or bfloat16; numpy, torch, CuPy, dpnp or DLPack, on the CPU, a
        GPU or a SYCL device, the last dimension contiguous. bfloat16 in numpy is
        ``ml_dtypes.bfloat16``.
    k : array, shape (total_k, num_heads_kv, head_dim)
        With `block_table` pages: (num_pages, page_size, num_heads_kv, head_dim).
    v : array, shape (total_k, num_heads_kv, head_dim_v)
        Likewise.
    cu_seqlens_q : integers, shape (batch + 1,)
        Running sums of the query lengths, from 0 to at most total_q. In GPU memory (int32), where
        all other lengths are then too, they are planned there.
    cu_seqlens_k : integers, shape (batch + 1,), optional
        The same for keys and values. Default: `cu_seqlens_q`, with pages `seqused_k`.
    seqused_q, seqused_k
        As `exactile.plan`.
    max_seqlen_k : int, optional
        As `exactile.plan`. Default with pages and lengths in GPU memory: the keys that the columns
        of `block_table` have pages for.
    causal, window, scheduler, order, pack_gqa, pack_sequences, num_splits, backend, workers
        As `exactile.plan`; the default backend is that of the arrays' device.
    out, return_lse, stream, and options of a run
        As `exactile.Plan.run`.
    dtype : str or dtype, optional
        ``"bfloat16"`` where the arrays are its storage as uint16. Default: that of `q`.

    Returns
    -------
    out : array, shape (total_q, num_heads_q, head_dim_v)
        Of the library and dtype of `q`. Rows that see no key are 0.
    lse : float32 array, shape (num_heads_q, total_q)
        With `return_lse`. Natural logarithm; -inf for rows that see no key.

    Raises
    ------
    ValueError
        Shapes, dtypes, lengths or names that do not fit; nothing has been written.
    TypeError
        An argument of a wrong kind, or an array without memory or under a transformation.

    Notes
    -----
    Causal and windows are bottom-right aligned: row i of a sequence stands at key position
    ``i + (len_k - len_q)``. Sequences of length zero are legal. Inf and NaN stay in their sequence.

    References
    ----------
    FlashAttention: arXiv:2205.14135, Algorithm 1.

    Examples
    --------
    >>> import numpy as np, exactile
    >>> q = np.ones((5, 4, 64), np.float32)
    >>> k = v = np.ones((5, 2, 64), np.float32)
    >>> exactile.varlen_prefill(q, k, v, [0, 2, 5], causal=True).shape
    (5, 4, 64)
    """
    given = "" if dtype is None else canonical_dtype(dtype, "varlen_prefill")
    shape_q, dtype_q, device = _core.array_info(q, "q", given)
    paged = options.get("block_table") is not None
    shape_k, _, _ = _core.array_info(k, "k", dtype_q, paged)
    shape_v, _, _ = _core.array_info(v, "v", dtype_q, paged)
    own: BackendName = BACKEND_OF_DEVICE.get(device, "cpu")  # the run refuses other devices
    if backend is None:
        backend = own
    if backend == own == "sycl":
        stream = _sycl.queue_of(q, stream)
    if paged and max_seqlen_k is None and backend_of(cu_seqlens_q) == "cuda":
        max_seqlen_k = _keys_of_table(options["block_table"], shape_k[1])
    planned = plan(
        cu_seqlens_q,
        cu_seqlens_k,
        num_heads_q=shape_q[1],
        seqused_q=seqused_q,
        seqused_k=seqused_k,
        page_size=shape_k[1] if paged else None,
        max_seqlen_k=max_seqlen_k,
        num_heads_kv=shape_k[-2],
        head_dim=shape_q[2],
        head_dim_v=shape_v[-1],
        dtype=given or dtype_q,
        causal=causal,
        window=window,
        scheduler=scheduler,
        order=order,
        pack_gqa=pack_gqa,
        pack_sequences=pack_sequences,
        num_splits=num_splits,
        backend=backend,
        workers=workers,
        total_q=shape_q[0],
        total_k=None if paged else shape_k[0],
        stream=stream,
    )
    return planned.run(q, k, v, out=out, return_lse=return_lse, stream=stream, **options)


def _keys_of_table(block_table: Any, page_size: int) -> int:
    """Keys of the longest sequence that fits; 0 for another rank, which the run refuses."""
    shape = tuple(getattr(block_table, "shape", ()))
    return min(int(shape[1]) * page_size, _core.MAX_TOKENS) if len(shape) == 2 else 0
