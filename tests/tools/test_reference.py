"""The float64 reference against PyTorch where it is installed, and against brute force always."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from abilities import require
from exactile.tools.reference import reference, to_bfloat16

WINDOWS = [(-1, -1), (0, 0), (3, -1), (-1, 2), (2, 1)]


def batch(
    seqlens_q: list[int],
    seqlens_k: list[int],
    heads: tuple[int, int] = (4, 2),
    head_dims: tuple[int, int] = (16, 16),
    seed: int = 1,
) -> tuple[Any, ...]:
    """q, k, v, cu_seqlens_q, cu_seqlens_k of a random float64 batch."""
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.standard_normal((sum(seqlens), h, d))
        for seqlens, h, d in (
            (seqlens_q, heads[0], head_dims[0]),
            (seqlens_k, heads[1], head_dims[0]),
            (seqlens_k, heads[1], head_dims[1]),
        )
    )
    return q, k, v, np.cumsum([0, *seqlens_q]), np.cumsum([0, *seqlens_k])


def brute_force(
    q: Any,
    k: Any,
    v: Any,
    cu_q: Any,
    cu_k: Any,
    causal: bool,
    window: tuple[int, int],
    scale: float,
) -> tuple[Any, Any]:
    """Every row, head and key in Python loops, straight from the definition."""
    out, lse = np.zeros((*q.shape[:2], v.shape[2])), np.full(q.shape[1::-1], -np.inf)
    for b in range(len(cu_q) - 1):
        len_q, len_k = cu_q[b + 1] - cu_q[b], cu_k[b + 1] - cu_k[b]
        for i, h in np.ndindex(len_q, q.shape[1]):
            weights, kv_head = {}, h * k.shape[1] // q.shape[1]
            for j in range(len_k):
                distance = j - i - (len_k - len_q)
                if (
                    (not causal or distance <= 0)
                    and (window[0] < 0 or distance >= -window[0])
                    and (window[1] < 0 or distance <= window[1])
                ):
                    score = q[cu_q[b] + i, h] @ k[cu_k[b] + j, kv_head] * scale
                    weights[j] = math.exp(score)
            if weights:
                total = sum(weights.values())
                lse[h, cu_q[b] + i] = math.log(total)
                out[cu_q[b] + i, h] = sum(
                    w / total * v[cu_k[b] + j, kv_head] for j, w in weights.items()
                )
    return out, lse


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_matches_brute_force(causal: bool, window: tuple[int, int]) -> None:
    case = batch([5, 0, 1, 4, 3, 0], [5, 4, 7, 2, 0, 0], head_dims=(8, 6))
    want_out, want_lse = brute_force(*case, causal, window, 0.3)
    out, lse = reference(*case, causal=causal, window=window, softmax_scale=0.3)
    np.testing.assert_allclose(out, want_out, atol=1e-14)
    np.testing.assert_allclose(lse, want_lse, atol=1e-14)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_matches_torch(causal: bool, window: tuple[int, int]) -> None:
    require("torch")
    import torch

    seqlens_q, seqlens_k = [33, 1, 20], [33, 40, 64]
    q, k, v, cu_q, cu_k = batch(seqlens_q, seqlens_k, heads=(6, 2), head_dims=(24, 16))
    out, _ = reference(q, k, v, cu_q, cu_k, causal=causal, window=window)
    for b, (len_q, len_k) in enumerate(zip(seqlens_q, seqlens_k, strict=True)):
        distance = torch.arange(len_k) - torch.arange(len_q)[:, None] - (len_k - len_q)
        right = 0 if causal else window[1]
        mask = (window[0] < 0) | (distance >= -window[0])
        mask = mask & ((right < 0) | (distance <= right))
        query, key, value = (
            torch.from_numpy(x[cu[b] : cu[b + 1]]).transpose(0, 1)[None]
            for x, cu in ((q, cu_q), (k, cu_k), (v, cu_k))
        )
        want = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, enable_gqa=True
        )
        np.testing.assert_allclose(
            out[cu_q[b] : cu_q[b + 1]], want[0].transpose(0, 1).numpy(), atol=1e-13
        )


def test_chosen_rows_are_those_of_the_whole_batch() -> None:
    case = batch([5, 0, 9, 1], [3, 4, 9, 6])
    out, lse = reference(*case, causal=True)
    rows = [(2, 8), (0, 0), (3, 0), (2, 0), (0, 4), (2, 8)]
    tokens = [case[3][b] + i for b, i in rows]
    some_out, some_lse = reference(*case, causal=True, rows=rows)
    np.testing.assert_allclose(some_out, out[tokens], atol=1e-15)
    np.testing.assert_allclose(some_lse, lse[:, tokens], atol=1e-15)
    assert reference(*case, rows=[])[0].shape == (0, 4, 16)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    case = batch([50, 3], [40, 7])
    want = reference(*case, causal=True)
    monkeypatch.setattr("exactile.tools.reference._CHUNK_SCORES", 100)
    for got, whole in zip(reference(*case, causal=True), want, strict=True):
        np.testing.assert_allclose(got, whole, atol=1e-15)


def test_rows_that_see_no_key() -> None:
    out, lse = reference(*batch([4], [2]), causal=True)
    assert (out[:2] == 0).all()
    assert np.isneginf(lse[:, :2]).all()
    assert np.isfinite(lse[:, 2:]).all()


def test_empty_batch() -> None:
    out, lse = reference(*batch([], []))
    assert out.shape == (0, 4, 16)
    assert lse.shape == (4, 0)


@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)]
)
def test_narrow_compute_dtype_is_near(dtype: str, error: float) -> None:
    case = batch([70], [70])
    want, want_lse = reference(*case)
    out, lse = reference(*case, compute_dtype=dtype)
    assert 0 < abs(out - want).max() < error
    assert abs(lse - want_lse).max() < 1e-5


def test_bfloat16() -> None:
    require("ml_dtypes")
    import ml_dtypes

    q, k, v, *cu = batch([9], [9])
    bf16 = [x.astype(np.float32).astype(ml_dtypes.bfloat16) for x in (q, k, v)]
    want, _ = reference(*(x.astype(np.float64) for x in bf16), *cu)
    np.testing.assert_array_equal(reference(*bf16, *cu)[0], want)
    storage = [to_bfloat16(x) for x in (q, k, v)]
    for x, y in zip(storage, bf16, strict=True):
        np.testing.assert_array_equal(x, y.view(np.uint16))
    np.testing.assert_array_equal(reference(*storage, *cu)[0], want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((4, 4))}, "shape"),
        ({"q": np.zeros((4, 4, 8))}, "one head_dim"),
        ({"v": np.zeros((3, 2, 16))}, "same tokens"),
        ({"q": np.zeros((4, 3, 16))}, "multiple"),
        ({"cu_seqlens_q": [1, 4]}, "rise from 0"),
        ({"cu_seqlens_q": [0, 5]}, "at most 4"),
        ({"cu_seqlens_k": [0, 3, 2]}, "batch"),
        ({"cu_seqlens_q": [0, 3, 2]}, "rise from 0"),
        ({"cu_seqlens_q": []}, "batch"),
        ({"rows": [(0, 4)]}, r"\(0, 4\)"),
        ({"rows": [(0, 0), (1, 0)]}, r"\(1, 0\)"),
        ({"rows": [(-1, 0)]}, r"\(-1, 0\)"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    q, k, v, cu_q, _ = batch([4], [4])
    arguments = {"q": q, "k": k, "v": v, "cu_seqlens_q": cu_q} | change
    with pytest.raises(ValueError, match=message):
        reference(**arguments)
