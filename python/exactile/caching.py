"""New keys and values, written into the pages of a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from exactile import _core, _sycl
from exactile._arguments import eager
from exactile._arrays import as_int32, canonical_dtype, is_torch, refuse_stream
from exactile._device import BACKEND_OF_DEVICE, cuda_results_of
from exactile.threads import get_num_threads


@eager
def append_kv(
    k_new: Any,
    v_new: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    slot_mapping: Any = None,
    block_table: Any = None,
    cu_seqlens: Any = None,
    seqused_k: Any = None,
    stream: Any = None,
    dtype: Any = None,
) -> None:
    """Write the keys and values of new tokens into the pages of a cache.

    Where to is said by `slot_mapping`, or by `block_table`, `cu_seqlens` and `seqused_k` as
    `exactile.varlen_prefill` takes them for these tokens.

    Parameters
    ----------
    k_new : array, shape (num_tokens, num_heads_kv, head_dim)
        float32, float16 or bfloat16; numpy, torch, CuPy, dpnp or DLPack, on the CPU, a GPU or a
        SYCL device. The last dimension of all arrays is contiguous, other strides are free.
    v_new : array, shape (num_tokens, num_heads_kv, head_dim_v)
        Of the dtype of `k_new`.
    k_cache : array, shape (num_pages, page_size, num_heads_kv, head_dim)
        Written. float32, float16 or bfloat16: another dtype than that of `k_new` is rounded to.
    v_cache : array, shape (num_pages, page_size, num_heads_kv, head_dim_v)
        Written. Of the dtype of `k_cache`; both may lie side by side in one array.
    slot_mapping : int32 or int64 array, shape (num_tokens,), optional
        ``page * page_size + row of the page`` for each token; negative: the token is not written.
        On the device of the cache, or in CPU memory, where its values are checked. Two tokens have
        no slot in common, else either is there.
    block_table : int32 array, shape (batch, max_pages), optional
        Pages of each sequence, in CPU memory.
    cu_seqlens : integers, shape (batch + 1,), optional
        Running sums of the new tokens of each sequence, in CPU memory. Tokens past the last are not
        written.
    seqused_k : integers, shape (batch,), optional
        Keys of each sequence, its new tokens included, which are the last of them.
    stream : int or stream object, optional
        As `exactile.Plan.run`; where arrays have a stream or queue of their own, that of `k_cache`.
    dtype : str or dtype, optional
        ``"bfloat16"`` where arrays of uint16 are its storage.

    Raises
    ------
    ValueError
        Arrays that do not fit one another, a slot or page that the cache does not have, or on CUDA
        a `slot_mapping` or `block_table` in CPU memory while the stream is captured into a graph;
        nothing has been written.
    TypeError
        An argument is no array that can be used, or it is not said where to write.
    RuntimeError
        As `exactile.Plan.run`.

    Notes
    -----
    Slots on a device are not seen by the host: one that the cache does not have is not written
    there. Rows keep their bits where both dtypes are the same; else values are rounded to nearest,
    ties to even. Torch sees the writes.

    Examples
    --------
    >>> import numpy as np, exactile
    >>> k_cache, v_cache = np.zeros((2, 8, 16, 2, 64), np.float32)  # pages of 16
    >>> new = np.ones((3, 2, 64), np.float32)
    >>> exactile.append_kv(new, new, k_cache, v_cache, slot_mapping=np.array([5, -1, 127]))
    >>> int(k_cache[:, :, 0, 0].sum()), int(k_cache[7, 15, 0, 0])
    (2, 1)
    """
    if dtype is not None and canonical_dtype(dtype, "append_kv") != "bfloat16":
        raise ValueError(
            f"append_kv: expected dtype 'bfloat16', which arrays of uint16 hold, got {dtype!r}"
        )
    device = _core.append_device(k_new, dtype is not None)
    slots = _slots(slot_mapping, block_table, cu_seqlens, seqused_k, k_new, k_cache)
    handle, backend = 0, BACKEND_OF_DEVICE[device]
    if backend == "sycl":
        handle = int(_sycl.queue_of(k_cache, stream, "append_kv").addressof_ref())
    elif backend == "cuda":
        handle = cuda_results_of("append_kv", k_cache, stream).stream
    elif stream is not None:
        refuse_stream(stream, "append_kv")
    _core.append_kv(
        k_new, v_new, k_cache, v_cache, slots, dtype is not None, handle, get_num_threads()
    )


def _slots(
    slot_mapping: Any,
    block_table: Any,
    cu_seqlens: Any,
    seqused_k: Any,
    k_new: Any,
    k_cache: Any,
) -> Any:
    """Where the tokens go, however that was said."""
    named = {"block_table": block_table, "cu_seqlens": cu_seqlens, "seqused_k": seqused_k}
    given = [name for name, value in named.items() if value is not None]
    if slot_mapping is not None and not given:
        return slot_mapping
    if slot_mapping is not None or len(given) < len(named):
        given += [] if slot_mapping is None else ["slot_mapping"]
        raise TypeError(
            "append_kv: expected slot_mapping, or block_table, cu_seqlens and seqused_k, got "
            f"{' and '.join(given) or 'none of them'}"
        )
    shape = tuple(int(x) for x in getattr(k_cache, "shape", ()))
    if len(shape) != 4 or shape[1] == 0:  # refused where it is read
        return np.full(len(k_new), -1)
    cu = as_int32(cu_seqlens, "cu_seqlens", "append_kv")
    used = as_int32(seqused_k, "seqused_k", "append_kv")
    num_tokens, (num_pages, page_size) = len(k_new), shape[:2]
    lengths = np.diff(cu)
    if not cu.size or cu[0] != 0 or (lengths < 0).any() or cu[-1] > num_tokens:
        raise ValueError(
            "append_kv: expected cu_seqlens from 0, not falling, to at most the tokens of k_new, "
            f"{num_tokens}, got {_shorten(cu)}"
        )
    if used.shape != lengths.shape or (used < lengths).any():
        raise ValueError(
            "append_kv: expected seqused_k of at least the new tokens of each sequence, "
            f"{_shorten(lengths)}, got {_shorten(used)}"
        )
    table = _host_table(block_table)
    if table.shape[0] != lengths.size or (lengths.size and used.max() > table.shape[1] * page_size):
        pages = -(-int(used.max(initial=0)) // page_size)
        raise ValueError(
            f"append_kv: expected block_table of shape ({lengths.size}, {pages} or more), got "
            f"{table.shape}"
        )
    sequence = np.repeat(np.arange(lengths.size), lengths)
    position = np.arange(cu[-1]) + np.repeat(used - lengths - cu[:-1], lengths)
    pages_of = table[sequence, position // page_size]
    wrong = np.flatnonzero((pages_of < 0) | (pages_of >= num_pages))
    if wrong.size:
        at = (int(sequence[wrong[0]]), int(position[wrong[0]]) // page_size)
        raise ValueError(
            f"append_kv: expected block_table of pages from 0 to {num_pages - 1}, got "
            f"{int(pages_of[wrong[0]])} at index {at}"
        )
    slots = np.full(num_tokens, -1, np.int64)
    slots[: cu[-1]] = pages_of.astype(np.int64) * page_size + position % page_size
    return slots


def _host_table(table: Any) -> npt.NDArray[np.int32]:
    """A table of pages as numpy's, which is int32 and of rank 2.

    Raises
    ------
    TypeError
        It is not in CPU memory, or no array.
    ValueError
        It is of another dtype or rank.
    """
    if hasattr(table, "__dlpack_device__"):
        device = _core.device_name(int(table.__dlpack_device__()[0]))
        if device != "CPU":
            raise TypeError(
                f"append_kv: expected block_table in CPU memory, got an array on {device}; pass "
                "slot_mapping, which may lie there"
            )
    array = table.numpy() if is_torch(table) else np.asarray(table)
    if array.dtype != np.int32 or array.ndim != 2:
        raise ValueError(
            "append_kv: expected block_table of dtype int32 and shape (batch, max_pages), got "
            f"{array.dtype} and {array.shape}"
        )
    return array


def _shorten(values: npt.NDArray[Any]) -> str:
    head = ", ".join(str(int(x)) for x in values[:8])
    return f"[{head}{', ...' if values.size > 8 else ''}]"
