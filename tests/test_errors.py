"""Bad input: an error that says what was expected and what came, and nothing is written."""

from __future__ import annotations

import numpy as np
import pytest

import exactile
from conftest import make_batch

PLAN = dict(num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="float32")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(num_heads_q=5), ValueError, "multiple of num_heads_kv, got 5 and 2"),
        (dict(num_heads_kv=0), ValueError, "positive multiple"),
        (dict(num_heads_q=2**31), ValueError, "2147483648"),
        (dict(head_dim=80), ValueError, r"one of \(64, 64\), .*\(192, 128\).*, got \(80, 80\)"),
        (dict(head_dim=128, head_dim_v=64), ValueError, r"got \(128, 64\)"),
        (dict(dtype="float64"), ValueError, "float32, float16, bfloat16, got 'float64'"),
        (dict(dtype=object()), TypeError, "dtype"),
        (dict(scheduler="Fair"), ValueError, "Individual, .*, auto, got 'Fair'"),
        (
            dict(order="random"),
            ValueError,
            "natural, longest_first, sequence_major, head_major, got 'random'",
        ),
        (dict(backend="metal"), ValueError, "cpu, cuda, sycl, got 'metal'"),
        (dict(window=(-2, 0)), ValueError, r"got \(-2, 0\)"),
        (dict(window=(1, 2, 3)), ValueError, "two sizes"),
        (dict(workers=0), ValueError, "workers >= 1, got 0"),
        (dict(scheduler="Individual", order="natural"), ValueError, "no order"),
        (dict(num_heads_q=300, pack_gqa=True), ValueError, "at most 128 query heads"),
    ],
)
def test_plan(options, error, message):
    if options.get("num_heads_q") == 300:
        options = options | {"num_heads_kv": 1}
    with pytest.raises(error, match=message):
        exactile.plan([0, 8], **PLAN | options)


@pytest.mark.parametrize(
    ("cu", "error", "message"),
    [
        ([], ValueError, r"batch \+ 1, got length 0"),
        ([1, 8], ValueError, r"cu_seqlens_q\[0\] == 0, got 1"),
        ([0, 5, 3], ValueError, "got 5 then 3 at index 2"),
        ([0, 2**31], ValueError, "fit in int32, got 0 to 2147483648"),
        ([0.0, 8.0], TypeError, "integers, got dtype float64"),
        ([[0, 8]], ValueError, r"rank 1, got shape \(1, 2\)"),
        ("abc", TypeError, "integers"),
        (None, TypeError, "either cu_seqlens_q or seqlens_q"),
    ],
)
def test_cu_seqlens(cu, error, message):
    with pytest.raises(error, match=message):
        exactile.plan(cu, **PLAN)


def test_lengths():
    with pytest.raises(ValueError, match="seqlens_q >= 0, got -1"):
        exactile.plan(seqlens_q=[3, -1], **PLAN)
    with pytest.raises(ValueError, match="fit in int32"):
        exactile.plan(seqlens_q=[2**30, 2**30], **PLAN)
    with pytest.raises(TypeError, match="either cu_seqlens_q or seqlens_q"):
        exactile.plan([0, 8], seqlens_q=[8], **PLAN)
    with pytest.raises(ValueError, match="length of cu_seqlens_q, 2, got 3"):
        exactile.plan([0, 8], [0, 4, 8], **PLAN)


def test_products_past_31_bits():
    many = dict(num_heads_q=1 << 20, num_heads_kv=1 << 20, head_dim=64, dtype="float32")
    with pytest.raises(ValueError, match="31 bits"):
        exactile.plan(seqlens_q=[1] * 4096, **many, scheduler="ValidOnlyIndividual")
    with pytest.raises(ValueError, match="31 bits"):
        exactile.plan(seqlens_q=[1, *[0] * 4096], **many, scheduler="Individual")
    with pytest.raises(ValueError, match="FLOPs"):
        exactile.plan(seqlens_q=[2**31 - 1], **many)
    large = exactile.plan(seqlens_q=[2**27], num_heads_q=1, num_heads_kv=1, head_dim=64,
                          dtype="float32", causal=True)  # fmt: skip
    assert large.pairs == 2**27 * (2**27 + 1) // 2
    assert large.valid == 2**20


def mutate(name, change):
    """A change of one array of the batch."""
    return lambda batch: setattr(batch, name, change(getattr(batch, name)))


BAD_ARRAYS = {
    "rank": (mutate("q", lambda x: x[0]), ValueError, "q of rank 3"),
    "k rank": (mutate("k", lambda x: x[..., None]), ValueError, "k of rank 3"),
    "dtype": (mutate("q", lambda x: x.astype(np.float64)), ValueError, "dtype.* got 'float64'"),
    "k dtype": (mutate("k", lambda x: x.astype(np.float16)), ValueError, "k of dtype float32"),
    "v dtype": (mutate("v", lambda x: x.astype(np.int32)), ValueError, "v of dtype float32"),
    "uint16": (mutate("v", lambda x: x.astype(np.uint16)), ValueError, "v of dtype float32"),
    "heads": (mutate("k", lambda x: np.repeat(x, 2, 1)[:, :3]), ValueError, "multiple"),
    "v heads": (mutate("v", lambda x: x[:, :1]), ValueError, r"v of shape \(20, 2, 64\)"),
    "head_dim": (mutate("k", lambda x: x[..., :32]), ValueError, r"k of shape \(20, 2, 64\)"),
    "tokens": (mutate("v", lambda x: x[:-1]), ValueError, r"got \(19, 2, 64\)"),
    "last dimension": (
        mutate("q", lambda x: np.repeat(x, 2, 2)[..., ::2]),
        ValueError,
        "contiguous, got a stride of 2",
    ),
    "list": (mutate("q", lambda x: x.tolist()), TypeError, "q to be a numpy array"),
    "too many tokens": (mutate("cu_q", lambda x: x + np.arange(2)), ValueError, r"\(21, 4, 64\)"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays(case):
    change, error, message = BAD_ARRAYS[case]
    batch = make_batch([20])
    out = np.full((20, 4, 64), 7, np.float32)
    change(batch)
    with pytest.raises(error, match=message):
        batch.run(out=out)
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((20, 4, 32), np.float32), r"out of shape \(20, 4, 64\), got \(20, 4, 32\)"),
        (np.zeros((20, 4, 64), np.float16), "out of dtype float32, got float16"),
        (np.zeros((20, 4, 128), np.float32)[..., ::2], "last dimension of out"),
        (np.broadcast_to(np.float32(0), (20, 4, 64)), "read-only"),
    ],
    ids=["shape", "dtype", "contiguity", "read-only"],
)
def test_out(out, message):
    with pytest.raises(ValueError, match=message):
        make_batch([20]).run(out=out)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_softmax_scale(scale):
    with pytest.raises(ValueError, match="finite softmax_scale > 0"):
        make_batch([20]).run(softmax_scale=scale)


def test_torch_tensor_that_requires_grad():
    torch = pytest.importorskip("torch")
    q = torch.zeros(4, 2, 64)
    with pytest.raises(ValueError, match="k not to require grad"):
        exactile.varlen_prefill(q, q.clone().requires_grad_(), q, [0, 4])
