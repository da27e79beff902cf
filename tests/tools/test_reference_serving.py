"""Pages, used lengths, softcap, ALiBi and sinks of the reference, against loops and PyTorch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from abilities import require
from exactile.tools.reference import reference

HEADS_Q, HEADS_KV, HEAD_DIM, HEAD_DIM_V = 4, 2, 8, 6
LENS_Q, LENS_K = [5, 0, 1, 4, 3], [5, 4, 7, 2, 0]
SINKS = np.array([0.5, -np.inf, -3.0, 40.0])
SLOPES = np.array([0.5, 0.0, 0.03125, 2.0])


def draw(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def batch(lens_q: list[int] = LENS_Q, lens_k: list[int] = LENS_K) -> list[Any]:
    """q, k, v, cu_seqlens_q, cu_seqlens_k of random float64."""
    return [
        draw(sum(lens_q), HEADS_Q, HEAD_DIM),
        draw(sum(lens_k), HEADS_KV, HEAD_DIM),
        draw(sum(lens_k), HEADS_KV, HEAD_DIM_V),
        np.cumsum([0, *lens_q]),
        np.cumsum([0, *lens_k]),
    ]


def loops(q, k, v, cu_q, cu_k, *, softcap=0.0, sinks=None, slopes=None, window=(-1, -1)):
    """(out, lse), every row, head and key in Python loops, straight from the definitions."""
    out, lse = np.zeros((len(q), HEADS_Q, HEAD_DIM_V)), np.full((HEADS_Q, len(q)), -np.inf)
    for b in range(len(cu_q) - 1):
        len_q, len_k = cu_q[b + 1] - cu_q[b], cu_k[b + 1] - cu_k[b]
        for i, h in np.ndindex(len_q, HEADS_Q):
            weights, position = [0.0] * len_k, i + len_k - len_q
            for j in range(len_k):
                if 0 <= window[0] < position - j or 0 <= window[1] < j - position:
                    continue
                score = 0.3 * float(q[cu_q[b] + i, h] @ k[cu_k[b] + j, h // 2])
                if softcap:
                    score = softcap * math.tanh(score / softcap)
                if slopes is not None:
                    score -= np.broadcast_to(slopes, (len(cu_q) - 1, HEADS_Q))[b, h] * abs(
                        position - j
                    )
                weights[j] = math.exp(score)
            total = sum(weights) + (math.exp(sinks[h]) if sinks is not None else 0)
            if total:
                lse[h, cu_q[b] + i] = math.log(total)
                for j, weight in enumerate(weights):
                    out[cu_q[b] + i, h] += weight / total * v[cu_k[b] + j, h // 2]
    return out, lse


def assert_close(got: Any, want: Any) -> None:
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("softcap", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("sinks", [None, SINKS], ids=["", "sinks"])
@pytest.mark.parametrize(
    "slopes",
    [None, SLOPES, np.outer(np.arange(len(LENS_Q)), SLOPES)],
    ids=["", "alibi", "alibi of sequences"],
)
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 1)], ids=["full", "causal", "window"])
def test_scores_match_loops(softcap, sinks, slopes, window):
    case = batch()
    got = reference(
        *case,
        softcap=softcap,
        sinks=sinks,
        alibi_slopes=slopes,
        window=window,
        softmax_scale=0.3,
    )
    want = loops(*case, softcap=softcap, sinks=sinks, slopes=slopes, window=window)
    assert_close(got, want)


@pytest.mark.parametrize("chunk", [1, 10, 1 << 22])
def test_variants_do_not_depend_on_chunks(monkeypatch, chunk):
    monkeypatch.setattr("exactile.tools.reference._CHUNK_SCORES", chunk)
    got = reference(
        *batch(), softcap=2, sinks=SINKS, alibi_slopes=SLOPES, causal=True, softmax_scale=0.3
    )
    assert_close(got, loops(*batch(), softcap=2, sinks=SINKS, slopes=SLOPES, window=(-1, 0)))


def test_alibi_matches_torch():
    """scaled_dot_product_attention with the bias written out."""
    require("torch")
    import torch

    lens_q, lens_k = [33, 1, 20], [33, 40, 64]
    q, k, v, cu_q, cu_k = batch(lens_q, lens_k)
    out, _ = reference(q, k, v, cu_q, cu_k, alibi_slopes=SLOPES, causal=True)
    for b, (len_q, len_k) in enumerate(zip(lens_q, lens_k, strict=True)):
        position = torch.arange(len_q)[:, None] + len_k - len_q
        bias = -torch.tensor(SLOPES)[:, None, None] * (position - torch.arange(len_k)).abs()
        bias = bias.masked_fill(torch.arange(len_k) > position, -math.inf)
        query, key, value = (
            torch.from_numpy(x[cu[b] : cu[b + 1]]).transpose(0, 1)[None]
            for x, cu in ((q, cu_q), (k, cu_k), (v, cu_k))
        )
        want = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias[None], enable_gqa=True
        )
        got = torch.from_numpy(out[cu_q[b] : cu_q[b + 1]])
        torch.testing.assert_close(got, want[0].transpose(0, 1), rtol=0, atol=1e-13)


def test_a_sink_is_a_column_of_logits():
    """Softmax over the scores with one more column, whose value is 0."""
    q, k, v, cu_q, cu_k = batch([6], [9])
    out, lse = reference(q, k, v, cu_q, cu_k, sinks=SINKS)
    for h in range(HEADS_Q):
        scores = q[:, h] @ k[:, h // 2].T / math.sqrt(HEAD_DIM)
        weights = np.exp(np.column_stack([scores, np.full(6, SINKS[h])]))
        total = weights.sum(axis=1, keepdims=True)
        values = np.vstack([v[:, h // 2], np.zeros(HEAD_DIM_V)])
        assert_close((out[:, h], lse[h]), (weights / total @ values, np.log(total[:, 0])))


def test_a_sink_for_rows_that_see_no_key():
    out, lse = reference(*batch([4, 2], [2, 0]), causal=True, sinks=SINKS)
    for rows in slice(2), slice(4, 6):
        assert (out[rows] == 0).all()
        np.testing.assert_array_equal(lse[:, rows], np.repeat(SINKS[:, None], 2, axis=1))
    assert (out[2:4] != 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_sink_above_all_scores_in_a_narrow_dtype(dtype):
    """What is left of the values is small, not imprecise."""
    case = batch([3], [5])
    want, _ = reference(*case, sinks=[6.0] * HEADS_Q)
    got, lse = reference(*case, sinks=[6.0] * HEADS_Q, compute_dtype=dtype)
    error = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert 0 < abs(got / want - 1).max() < error * 4
    got, lse = reference(*case, sinks=[2000.0] * HEADS_Q, compute_dtype=dtype)
    assert (got == 0).all()
    assert (lse == 2000).all()


def test_softcap_of_a_large_score():
    """Scores of 10^6 end at the cap, and those of far smaller size stay."""
    q, k, v, cu_q, cu_k = batch([1], [3])
    q[:] = [[[1e3] + [0] * 7]]
    k[:] = 0
    k[:, :, 0] = [[1e3, 1e3], [0, 0], [-1e3, -1e3]]
    _, lse = reference(q, k, v, cu_q, cu_k, softcap=5, softmax_scale=1)
    np.testing.assert_allclose(lse, math.log(math.exp(5) + 1 + math.exp(-5)), rtol=1e-14)
    small = batch()
    assert_close(reference(*small, softcap=1e9), reference(*small))


# --- lengths and pages ----------------------------------------------------------------------------


def spread(x: Any, cu: Any, used: list[int], sizes: list[int]) -> Any:
    """Sequences of `used` tokens of `sizes`; NaN fills the others."""
    wide = np.full((sum(sizes), *x.shape[1:]), np.nan)
    for b, first in enumerate(np.cumsum([0, *sizes[:-1]])):
        wide[first : first + used[b]] = x[cu[b] : cu[b + 1]]
    return wide


def test_used_lengths():
    q, k, v, cu_q, cu_k = batch()
    want = reference(q, k, v, cu_q, cu_k, causal=True)
    room_q, room_k = [7, 2, 1, 4, 5], [5, 9, 8, 4, 3]
    got = reference(
        spread(q, cu_q, LENS_Q, room_q),
        spread(k, cu_k, LENS_K, room_k),
        spread(v, cu_k, LENS_K, room_k),
        np.cumsum([0, *room_q]),
        np.cumsum([0, *room_k]),
        seqused_q=LENS_Q,
        seqused_k=LENS_K,
        causal=True,
    )
    assert_close(got, want)
    padded = [np.concatenate([x, np.full_like(x[:3], np.nan)]) for x in (q, k, v)]
    assert_close(reference(*padded, cu_q, cu_k, causal=True), want)


def test_used_lengths_of_keys_that_follow_the_queries():
    q, k, v, cu, _ = batch([5, 3], [5, 3])
    got = reference(q, k, v, cu, seqused_k=[2, 0])
    kept = k[:2], v[:2]
    assert_close(got, reference(q, *kept, cu, [0, 2, 2]))


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("by", ["seqused_k", "cu_seqlens_k", "both"])
def test_pages(page_size, by):
    """In shuffled pages, with NaN in all that no key has, and numbers of no page past the last."""
    q, k, v, cu_q, cu_k = batch()
    counts = [math.ceil(n / page_size) for n in LENS_K]
    order = np.random.default_rng(0).permutation(sum(counts) + 2)
    table = np.full((len(LENS_K), max(counts) + 1), -7)
    paged = [np.full((len(order), page_size, *x.shape[1:]), np.nan) for x in (k, v)]
    pages = iter(order.tolist())
    for b, count in enumerate(counts):
        table[b, :count] = list(itertools.islice(pages, count))
        for j in range(LENS_K[b]):
            for x, source in zip(paged, (k, v), strict=True):
                x[table[b, j // page_size], j % page_size] = source[cu_k[b] + j]
    lengths = {"cu_seqlens_k": cu_k} if by != "seqused_k" else {}
    if by != "cu_seqlens_k":
        lengths["seqused_k"] = LENS_K
    got = reference(q, *paged, cu_q, block_table=table, window=(3, 1), **lengths)
    assert_close(got, reference(q, k, v, cu_q, cu_k, window=(3, 1)))
    some = reference(q, *paged, cu_q, block_table=table, rows=[(3, 1), (0, 4)], **lengths)
    assert_close(some, reference(q, k, v, cu_q, cu_k, rows=[(3, 1), (0, 4)]))


PAGED = {  # two sequences of 2 queries; 3 pages of 4 keys
    "q": np.zeros((4, 4, 8)),
    "k": np.zeros((3, 4, 2, 8)),
    "v": np.zeros((3, 4, 2, 6)),
    "cu_seqlens_q": [0, 2, 4],
    "seqused_k": [8, 4],
    "block_table": [[0, 2], [1, -1]],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros((12, 2, 8))}, "pages, page_size"),
        ({"v": np.zeros((3, 3, 2, 6))}, "same tokens"),
        ({"seqused_k": None}, "seqused_k or cu_seqlens_k"),
        ({"seqused_k": [8, 5]}, "pages from 0 to 2 in block_table, got"),
        ({"seqused_k": [9, 4]}, r"block_table of shape \(2, at least 3\), got \(2, 2\)"),
        ({"seqused_k": [8, -1]}, "seqused_k from 0 to"),
        ({"seqused_k": [8]}, r"seqused_k of shape \(2,\), got \(1,\)"),
        ({"cu_seqlens_k": [0, 8, 11]}, r"seqused_k from 0 to \[8 3\], got \[8 4\]"),
        ({"seqused_q": [2, 3]}, r"seqused_q from 0 to \[2 2\], got \[2 3\]"),
        ({"block_table": [[0, 3], [1, 1]]}, "pages from 0 to 2"),
        ({"block_table": [[0, 1]]}, r"block_table of shape \(2,"),
        ({"sinks": [0.0] * 3}, r"sinks of shape \(4,\), got \(3,\)"),
        ({"alibi_slopes": [0.0] * 2}, r"alibi_slopes of shape \(4,\) or \(2, 4\), got \(2,\)"),
        ({"alibi_slopes": np.zeros((4, 2))}, r"got \(4, 2\)"),
        ({"rows": [(0, 1), (1, 1)], "seqused_q": [2, 1]}, r"\(1, 1\)"),
    ],
)
def test_bad_input(change, message):
    reference(**PAGED)
    with pytest.raises(ValueError, match=message):
        reference(**PAGED | change)
