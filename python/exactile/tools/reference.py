"""Reference: varlen attention in float64 numpy, written to be obviously right, not fast.

Tests and the verification of the benchmark compare with it. It can evaluate a chosen subset of the
rows, so that a few rows of a big batch cost little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_CHUNK_SCORES = 1 << 22
"""Scores of one head held at a time (32 MiB of float64)."""


class Lengths(NamedTuple):
    """Where sequences begin, and how many rows and keys of each count; (batch,) each."""

    start_q: Int64
    len_q: Int64
    start_k: Int64
    """0 where keys lie in pages and only seqused_k says how many."""
    len_k: Int64


class _Variant(NamedTuple):
    """What becomes of the scores of one head."""

    scale: float
    softcap: float
    """0: none."""
    slope: float
    sink: float
    """-inf: none."""


def reference(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    v: npt.NDArray[Any],
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_k: npt.ArrayLike | None = None,
    *,
    seqused_q: npt.ArrayLike | None = None,
    seqused_k: npt.ArrayLike | None = None,
    block_table: npt.ArrayLike | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    softmax_scale: float | None = None,
    softcap: float | None = None,
    sinks: npt.ArrayLike | None = None,
    alibi_slopes: npt.ArrayLike | None = None,
    rows: npt.ArrayLike | None = None,
    compute_dtype: str = "float64",
) -> tuple[Float64, Float64]:
    """Softmax attention of every row, or of chosen rows, of a packed batch.

    Parameters
    ----------
    q : ndarray, (total_q, num_heads_q, head_dim)
        Any floating-point dtype, those of ml_dtypes included; uint16 is bfloat16 storage.
    k : ndarray, (total_k, num_heads_kv, head_dim)
        num_heads_q is a multiple of num_heads_kv. With `block_table`, of k and v:
        (num_pages, page_size, num_heads_kv, head_dim).
    v : ndarray, (total_k, num_heads_kv, head_dim_v)
    cu_seqlens_q, cu_seqlens_k : array_like of int, (batch + 1,)
        First token of each sequence, and the end of the last. Default of cu_seqlens_k:
        cu_seqlens_q; with `block_table` there is none.
    seqused_q, seqused_k : array_like of int, (batch,), optional
        Rows and keys of a sequence that count, its first ones: len_q and len_k below. Default: all.
    block_table : array_like of int, (batch, max_pages), optional
        Key j of sequence b is row j % page_size of page block_table[b, j // page_size].
    causal : bool
        Row i of a sequence sees keys j <= i + (len_k - len_q).
    window : (int, int)
        Row i sees keys j with -left <= j - i - (len_k - len_q) <= right; -1 is unbounded. `causal`
        makes right 0.
    softmax_scale : float, optional
        Factor of the scores; default: head_dim ** -0.5.
    softcap : float, optional
        Scaled scores become softcap * tanh(score / softcap); 0 or None: they stay.
    sinks : array_like of float, (num_heads_q,), optional
        One more logit of every row, which has no value; -inf: none.
    alibi_slopes : array_like of float, (num_heads_q,) or (batch, num_heads_q), optional
        slope * |i + (len_k - len_q) - j| is taken off the (capped) score.
    rows : array_like of int, (n, 2), optional
        (sequence, row of that sequence) pairs to evaluate; default: all that count, in packed
        order.
    compute_dtype : {"float64", "float32", "float16", "bfloat16"}
        float64 is the reference. A narrower dtype shows what that dtype alone costs: scores and
        sums in float32, probabilities and out rounded to it.

    Returns
    -------
    out : float64 ndarray, (n, num_heads_q, head_dim_v)
        n is the number of rows that count without `rows`: cu_seqlens_q[-1] or sum(seqused_q).
    lse : float64 ndarray, (num_heads_q, n)
        Natural logarithm of the sum of the exponentials of the scores, the sink included.

    Raises
    ------
    ValueError
        Shapes, lengths, pages or rows do not fit together.

    Notes
    -----
    A row that sees no key gives out = 0, and lse = its sink, or -inf without one.
    """
    table = None if block_table is None else np.asarray(block_table, np.int64)
    _check_arrays(q, k, v, table)
    lengths = lengths_of(cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, paged=table is not None)
    _check_room(lengths, len(q), len(k), table, k.shape[1])
    pairs = counted_rows(lengths) if rows is None else _chosen_rows(rows, lengths.len_q)
    scale = float(q.shape[2]) ** -0.5 if softmax_scale is None else softmax_scale
    left, right = window[0], 0 if causal else window[1]
    batch, num_heads, group = len(lengths.len_q), q.shape[1], q.shape[1] // k.shape[-2]
    slopes = _per_head(alibi_slopes, 0, "alibi_slopes", (num_heads,), (batch, num_heads))
    sink = _per_head(sinks, -np.inf, "sinks", (num_heads,))

    out = np.zeros((len(pairs), num_heads, v.shape[-1]))
    lse = np.repeat(sink[:, None], len(pairs), axis=1)
    for b, index in _chunks(pairs, lengths.len_k):
        row, keys = pairs[index, 1], np.arange(lengths.len_k[b])
        # Bottom-right alignment: the last row stands at the last key.
        distance = keys - (row + lengths.len_k[b] - lengths.len_q[b])[:, None]  # (rows, keys)
        hidden = ((left >= 0) & (distance < -left)) | ((right >= 0) & (distance > right))
        places = _places(keys, lengths.start_k[b], None if table is None else table[b], k.shape[1])
        for head in range(num_heads):
            variant = _Variant(scale, softcap or 0, slopes[b, head], sink[head])
            at = (*places, head // group)
            qkv = q[lengths.start_q[b] + row, head], k[at], v[at]
            out[index, head], lse[head, index] = _attend(
                *qkv, distance, hidden, variant, compute_dtype
            )
    return out, lse


def _places(keys: Int64, start: np.int64, pages: Int64 | None, page_size: int) -> tuple[Int64, ...]:
    """Indices of a sequence's keys into the first dimensions of k and v."""
    if pages is None:
        return (start + keys,)
    return pages[keys // page_size], keys % page_size


def _attend(
    q: npt.NDArray[Any],  # (rows, head_dim)
    k: npt.NDArray[Any],  # (keys, head_dim)
    v: npt.NDArray[Any],  # (keys, head_dim_v)
    distance: Int64,  # (rows, keys): of the key from the row's position
    hidden: npt.NDArray[np.bool_],  # (rows, keys)
    variant: _Variant,
    dtype: str,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """One head of some rows of one sequence: out (rows, head_dim_v), lse (rows,)."""
    wide = np.float64 if dtype == "float64" else np.float32
    scale, softcap, slope, sink = map(wide, variant)
    scores = widened(q, wide) @ widened(k, wide).T * scale
    if softcap > 0:
        scores = softcap * np.tanh(scores / softcap)
    if slope:
        scores -= slope * np.abs(distance).astype(wide)
    scores[hidden] = -np.inf
    seen = ~hidden.all(axis=1)
    top = np.where(seen, scores.max(axis=1), 0)
    p = np.exp(scores - top[:, None])
    of_keys = np.where(seen, p.sum(axis=1), 1)
    out = _rounded(p / of_keys[:, None], dtype) @ widened(v, wide)
    # In base 2, as kernels have it: so a narrow dtype shows what far exponents lose there.
    log2_e = wide(1 / np.log(2))
    with np.errstate(over="ignore"):  # a sink far above all scores leaves nothing of the values
        total = of_keys + np.exp2(sink * log2_e - top * log2_e)
    out = _rounded(out * (of_keys / total)[:, None], dtype)
    return out, np.logaddexp(np.where(seen, top + np.log(of_keys), -np.inf), sink)


def lengths_of(
    cu_seqlens_q: npt.ArrayLike,
    cu_seqlens_k: npt.ArrayLike | None = None,
    seqused_q: npt.ArrayLike | None = None,
    seqused_k: npt.ArrayLike | None = None,
    *,
    paged: bool = False,
) -> Lengths:
    """Lengths of a batch from what `reference` takes.

    Raises
    ------
    ValueError
        They are no running sums, or of different batches, or seqused exceeds its sequence's length.
    """
    starts_q = _starts(cu_seqlens_q, "q")
    len_q = _used(seqused_q, np.diff(starts_q), "q")
    if cu_seqlens_k is None and paged:
        if seqused_k is None:
            _fail("seqused_k or cu_seqlens_k where keys lie in pages", None)
        unbounded = np.full(len(len_q), np.iinfo(np.int64).max)  # the table says
        return Lengths(starts_q[:-1], len_q, 0 * unbounded, _used(seqused_k, unbounded, "k"))
    starts_k = starts_q if cu_seqlens_k is None else _starts(cu_seqlens_k, "k", len(len_q))
    return Lengths(starts_q[:-1], len_q, starts_k[:-1], _used(seqused_k, np.diff(starts_k), "k"))


def counted_rows(lengths: Lengths) -> Int64:
    """(sequence, row) of every row that counts, in packed order."""
    sequence = np.repeat(np.arange(len(lengths.len_q)), lengths.len_q)
    first = np.cumsum(lengths.len_q) - lengths.len_q
    return np.stack([sequence, np.arange(len(sequence)) - first[sequence]], axis=1)


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


def _starts(cu_seqlens: npt.ArrayLike, side: str, batch: int | None = None) -> Int64:
    starts = np.asarray(cu_seqlens, np.int64)
    if starts.ndim != 1 or not len(starts) or batch not in (None, len(starts) - 1):
        _fail(f"cu_seqlens_{side} of shape (batch + 1,)", starts.shape)
    if starts[0] != 0 or (np.diff(starts) < 0).any():
        _fail(f"cu_seqlens_{side} to rise from 0", starts)
    return starts


def _used(seqused: npt.ArrayLike | None, limit: Int64, side: str) -> Int64:
    if seqused is None:
        return limit
    used = np.asarray(seqused, np.int64)
    if used.shape != limit.shape:
        _fail(f"seqused_{side} of shape {limit.shape}", used.shape)
    if (used < 0).any() or (used > limit).any():
        _fail(f"seqused_{side} from 0 to {limit}", used)
    return used


def _per_head(
    values: npt.ArrayLike | None, default: float, name: str, *shapes: tuple[int, ...]
) -> Float64:
    """Of shape shapes[-1], from any of `shapes`."""
    given = np.full(shapes[0], default) if values is None else np.asarray(values, np.float64)
    if given.shape not in shapes:
        _fail(f"{name} of shape {' or '.join(map(str, shapes))}", given.shape)
    return np.broadcast_to(given, shapes[-1])


def _check_arrays(
    q: npt.NDArray[Any], k: npt.NDArray[Any], v: npt.NDArray[Any], table: Int64 | None
) -> None:
    got = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 3:
        _fail("q of shape (tokens, heads, head_dim)", got)
    if not k.ndim == v.ndim == (3 if table is None else 4):
        dims = "tokens" if table is None else "pages, page_size"
        _fail(f"k and v of shape ({dims}, heads, head_dim)", got)
    if q.shape[2] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        _fail("q and k of one head_dim, k and v of the same tokens and heads", got)
    if k.shape[-2] == 0 or q.shape[1] % k.shape[-2]:
        _fail("num_heads_q to be a multiple of num_heads_kv", got)


def _check_room(
    lengths: Lengths, total_q: int, total_k: int, table: Int64 | None, page_size: int
) -> None:
    """Rows and keys that count lie inside q and k, and the pages that are used in `table`."""
    batch = len(lengths.len_q)
    sides = [("q", lengths.start_q + lengths.len_q, total_q)]
    if table is None:
        sides.append(("k", lengths.start_k + lengths.len_k, total_k))
    for side, ends, total in sides:
        if (ends > total).any():
            _fail(f"the sequences of {side} to end at most {total} tokens after its first", ends)
    if table is None:
        return
    pages = -(-lengths.len_k // page_size)
    if table.ndim != 2 or len(table) != batch or table.shape[1] < pages.max(initial=0):
        _fail(f"block_table of shape ({batch}, at least {pages.max(initial=0)})", table.shape)
    used = table[np.arange(table.shape[1]) < pages[:, None]]
    if ((used < 0) | (used >= total_k)).any():
        _fail(f"pages from 0 to {total_k - 1} in block_table", used)


def _chosen_rows(rows: npt.ArrayLike, len_q: Int64) -> Int64:
    pairs = np.asarray(rows, np.int64).reshape(-1, 2)
    sequence, row = pairs.T
    wrong = (sequence < 0) | (sequence >= len(len_q)) | (row < 0)
    wrong |= row >= np.append(len_q, 0)[np.where(wrong, -1, sequence)]
    if wrong.any():
        _fail(
            "rows that count of sequences that there are",
            f"(sequence, row) {tuple(pairs[wrong.argmax()].tolist())}",
        )
    return pairs


def _fail(expected: str, got: object) -> NoReturn:
    raise ValueError(f"reference: expected {expected}, got {got}")
