"""Reference: varlen attention in float64 numpy, written to be obviously right, not fast.

Tests and the verification of the benchmark compare with it. It can evaluate a chosen subset of the
rows, so that a few rows of a big batch cost little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_CHUNK_SCORES = 1 << 22
"""Scores of one head held at a time (32 MiB of float64)."""


def reference(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_k: npt.ArrayLike | None = None,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    rows: npt.ArrayLike | None = None,
    compute_dtype: str = "float64",
) -> tuple[Float64, Float64]:
    """Softmax attention of every row, or of chosen rows, of a packed batch.

    Parameters
    ----------
    q : ndarray, (total_q, num_heads_q, head_dim)
        Any floating-point dtype, those of ml_dtypes included; uint16 is bfloat16 storage.
    k : ndarray, (total_k, num_heads_kv, head_dim)
        num_heads_q is a multiple of num_heads_kv.
    v : ndarray, (total_k, num_heads_kv, head_dim_v)
    cu_seqlens_q, cu_seqlens_k : array_like of int, (batch + 1,)
        First token of each sequence, and the end of the last. Default of cu_seqlens_k:
        cu_seqlens_q.
    causal : bool
        Row i of a sequence sees keys j <= i + (len_k - len_q).
    window : (int, int)
        Row i sees keys j with -left <= j - i - (len_k - len_q) <= right; -1 is unbounded. `causal`
        makes right 0.
    softmax_scale : float, optional
        Factor of the scores; default: head_dim ** -0.5.
    rows : array_like of int, (n, 2), optional
        (sequence, row of that sequence) pairs to evaluate; default: all rows, in packed order.
    compute_dtype : {"float64", "float32", "float16", "bfloat16"}
        float64 is the reference. A narrower dtype shows what that dtype alone costs: scores and
        sums in float32, probabilities and out rounded to it.

    Returns
    -------
    out : float64 ndarray, (n, num_heads_q, head_dim_v)
        n is cu_seqlens_q[-1] without `rows`.
    lse : float64 ndarray, (num_heads_q, n)
        Natural logarithm of the sum of the exponentials of the scaled scores.

    Raises
    ------
    ValueError
        Shapes, cu_seqlens or rows do not fit together.

    Notes
    -----
    A row that sees no key gives out = 0 and lse = -inf.
    """
    starts_q = np.asarray(cu_seqlens_q, np.int64)
    starts_k = starts_q if cu_seqlens_k is None else np.asarray(cu_seqlens_k, np.int64)
    _check(q, k, v, starts_q, starts_k)
    pairs = _all_rows(starts_q) if rows is None else _chosen_rows(rows, starts_q)
    scale = float(q.shape[2]) ** -0.5 if softmax_scale is None else softmax_scale
    left, right = window[0], 0 if causal else window[1]
    group = q.shape[1] // k.shape[1]

    out = np.zeros((len(pairs), q.shape[1], v.shape[2]))
    lse = np.full((q.shape[1], len(pairs)), -np.inf)
    for b, index in _chunks(pairs, np.diff(starts_k)):
        tokens = starts_q[b] + pairs[index, 1]
        keys = slice(starts_k[b], starts_k[b + 1])
        # Bottom-right alignment: the last row stands at the last key.
        position = starts_k[b + 1] - starts_k[b] - (starts_q[b + 1] - tokens)  # (rows,)
        offset = np.arange(starts_k[b + 1] - starts_k[b]) - position[:, None]  # (rows, keys)
        hidden = ((left >= 0) & (offset < -left)) | ((right >= 0) & (offset > right))
        for head in range(q.shape[1]):
            qkv = q[tokens, head], k[keys, head // group], v[keys, head // group]
            out[index, head], lse[head, index] = _attend(*qkv, hidden, scale, compute_dtype)
    return out, lse


def _attend(
    q: npt.NDArray[Any],  # (rows, head_dim)
    k: npt.NDArray[Any],  # (keys, head_dim)
    v: npt.NDArray[Any],  # (keys, head_dim_v)
    hidden: npt.NDArray[np.bool_],  # (rows, keys)
    scale: float,
    dtype: str,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """One head of some rows of one sequence: out (rows, head_dim_v), lse (rows,)."""
    wide = np.float64 if dtype == "float64" else np.float32
    scores = widened(q, wide) @ widened(k, wide).T * scale
    scores[hidden] = -np.inf
    seen = ~hidden.all(axis=1)
    top = np.where(seen, scores.max(axis=1), 0)
    p = np.exp(scores - top[:, None])
    total = np.where(seen, p.sum(axis=1), 1)
    out = _rounded(_rounded(p / total[:, None], dtype) @ widened(v, wide), dtype)
    return out, np.where(seen, top + np.log(total), -np.inf)


def to_bfloat16(x: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Round finite values to bfloat16, ties to even; returns uint16 storage."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(x: npt.NDArray[Any], dtype: type[np.floating[Any]] = np.float64) -> npt.NDArray[Any]:
    """Return the values of `x` in `dtype`; uint16 is bfloat16 storage."""
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(dtype)


def _rounded(x: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """`x` in its own dtype, its values rounded to `dtype`."""
    if dtype == "bfloat16":
        return widened(to_bfloat16(x), np.float32)
    return x.astype(dtype).astype(x.dtype)


def _chunks(pairs: Int64, seqlens_k: Int64) -> Iterator[tuple[int, Int64]]:
    """(sequence, positions in `pairs`) of at most _CHUNK_SCORES scores; no row without keys."""
    order = np.argsort(pairs[:, 0], kind="stable")
    for b, first, count in zip(
        *np.unique(pairs[order, 0], return_index=True, return_counts=True), strict=True
    ):
        if seqlens_k[b] == 0:
            continue
        step = max(1, _CHUNK_SCORES // int(seqlens_k[b]))
        for start in range(first, first + count, step):
            yield b, order[start : min(start + step, first + count)]


def _all_rows(starts_q: Int64) -> Int64:
    seqlens = np.diff(starts_q)
    sequence = np.repeat(np.arange(len(seqlens)), seqlens)
    return np.stack([sequence, np.arange(len(sequence)) - starts_q[sequence]], axis=1)


def _check(
    q: npt.NDArray[Any], k: npt.NDArray[Any], v: npt.NDArray[Any], starts_q: Int64, starts_k: Int64
) -> None:
    def fail(expected: str, got: object = f"q {q.shape}, k {k.shape}, v {v.shape}") -> NoReturn:
        raise ValueError(f"reference: expected {expected}, got {got}")

    if not q.ndim == k.ndim == v.ndim == 3:
        fail("q, k and v of shape (tokens, heads, head_dim)")
    if q.shape[2] != k.shape[2] or k.shape[:2] != v.shape[:2]:
        fail("q and k of one head_dim, k and v of the same tokens and heads")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        fail("num_heads_q to be a multiple of num_heads_kv")
    for name, starts, total in ("q", starts_q, len(q)), ("k", starts_k, len(k)):
        if starts.ndim != 1 or starts.shape != starts_q.shape or not len(starts):
            fail(f"cu_seqlens_{name} of shape (batch + 1,)", starts.shape)
        if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] > total:
            fail(f"cu_seqlens_{name} to rise from 0 to at most {total}", starts)


def _chosen_rows(rows: npt.ArrayLike, starts_q: Int64) -> Int64:
    pairs = np.asarray(rows, np.int64).reshape(-1, 2)
    sequence, row = pairs.T
    wrong = (sequence < 0) | (sequence >= len(starts_q) - 1) | (row < 0)
    wrong |= row >= np.append(np.diff(starts_q), 0)[np.where(wrong, -1, sequence)]
    if wrong.any():
        raise ValueError(
            "reference: expected rows inside their sequence, got (sequence, row) "
            f"{tuple(pairs[wrong.argmax()].tolist())}"
        )
    return pairs
