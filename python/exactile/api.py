"""Attention in one call: plan and run."""

from __future__ import annotations

from typing import Any

from exactile import _sycl
from exactile._arrays import Array, check_input, dtype_name
from exactile._device import backend_of
from exactile.plan import plan
from exactile.scheduler import Scheduler


def varlen_prefill(
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any = None,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    out: Array | None = None,
    return_lse: bool = False,
    scheduler: str | Scheduler = "auto",
    order: str | None = None,
    pack_gqa: bool | None = None,
    pack_sequences: bool | None = None,
    backend: str | None = None,
    workers: int | None = None,
    stream: Any = None,
    dtype: str | None = None,
) -> Any:
    """Attention over a batch of sequences packed back to back, each attending to itself.

    Parameters
    ----------
    q : array, shape (total_q, num_heads_q, head_dim)
        float32 (CPU, SYCL), float16 or bfloat16; numpy, torch, CuPy, dpnp or DLPack, on the CPU, a
        GPU or a SYCL device, the last dimension contiguous. bfloat16 in numpy is
        ``ml_dtypes.bfloat16``.
    k : array, shape (total_k, num_heads_kv, head_dim)
    v : array, shape (total_k, num_heads_kv, head_dim_v)
    cu_seqlens_q : integers, shape (batch + 1,)
        Running sums of the query lengths, from 0 to total_q. In GPU memory (int32) they are planned
        there.
    cu_seqlens_k : integers, shape (batch + 1,), optional
        The same for keys and values. Default: `cu_seqlens_q`.
    causal, window, scheduler, order, pack_gqa, pack_sequences, backend, workers
        As `exactile.plan`; the default backend is that of the arrays' device.
    softmax_scale, out, return_lse, stream
        As `exactile.Plan.run`.
    dtype : str, optional
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
        An argument of a wrong kind.

    Notes
    -----
    Causal and windows are bottom-right aligned: row i of a sequence stands at key position
    ``i + (len_k - len_q)``. Sequences of length zero are legal. A NaN stays in its sequence.

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
    for x, name in ((q, "q"), (k, "k"), (v, "v")):
        check_input(x, name)
        if len(x.shape) != 3:
            raise ValueError(
                f"varlen_prefill: expected {name} of rank 3 (tokens, heads, head_dim), got shape "
                f"{tuple(x.shape)}"
            )
    backend = backend or backend_of(q)
    if backend == "sycl" and backend_of(q) == "sycl":
        stream = _sycl.queue_of(q, stream)
    planned = plan(
        cu_seqlens_q,
        cu_seqlens_k,
        num_heads_q=q.shape[1],
        num_heads_kv=k.shape[1],
        head_dim=q.shape[2],
        head_dim_v=v.shape[2],
        dtype=dtype or dtype_name(q),
        causal=causal,
        window=window,
        scheduler=scheduler,
        order=order,
        pack_gqa=pack_gqa,
        pack_sequences=pack_sequences,
        backend=backend,
        workers=workers,
        total_q=q.shape[0],
        total_k=k.shape[0],
        stream=stream,
    )
    return planned.run(
        q, k, v, out=out, return_lse=return_lse, softmax_scale=softmax_scale, stream=stream
    )
