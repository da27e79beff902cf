"""Bad input: an error that says what was expected and what came, and nothing is written."""

from __future__ import annotations

import inspect
from typing import get_args

import ml_dtypes
import numpy as np
import pytest

import exactile
from abilities import require
from cases import assert_same_bits, make_batch
from exactile import _arguments, _core

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
        (dict(dtype=None), TypeError, "a dtype or its name, got None"),
        (dict(dtype="f8"), ValueError, "got 'f8'"),
        (dict(scheduler="Fair"), ValueError, "Individual, .*, auto, got 'Fair'"),
        (
            dict(order="random"),
            ValueError,
            "natural, longest_first, sequence_major, head_major, got 'random'",
        ),
        (dict(backend="metal"), ValueError, f"{', '.join(_core.BACKENDS)}, got 'metal'"),
        (dict(window=(-2, 0)), ValueError, r"got \(-2, 0\)"),
        (dict(window=(-5, -7)), ValueError, r"got \(-5, -7\)"),
        (dict(window=(-(10**9), 0)), ValueError, r"got \(-1000000000, 0\)"),
        (dict(window=(-(2**70), 0)), ValueError, r"got \(-1180591620717411303424, 0\)"),
        (dict(window=(0, -2), causal=True), ValueError, r"got \(0, -2\)"),
        (dict(window=(1, 2, 3)), ValueError, "two sizes"),
        (dict(window=None), TypeError, r"two ints, \(left, right\), got None"),
        (dict(window=4), TypeError, r"two ints, \(left, right\), got 4"),
        (dict(window=(None, 0)), TypeError, r"got \(None, 0\)"),
        (dict(window=(1.5, 0)), TypeError, r"got \(1.5, 0\)"),
        (dict(window="ab"), TypeError, "got 'ab'"),
        (dict(head_dim=64.0), TypeError, "head_dim to be an int, got float"),
        (dict(head_dim_v="64"), TypeError, "head_dim_v to be an int, got str"),
        (dict(num_heads_q=None), TypeError, "num_heads_q to be an int, got NoneType"),
        (dict(num_heads_kv=True), TypeError, "num_heads_kv to be an int, got bool"),
        (dict(num_heads_kv=np.array([2, 2])), TypeError, "num_heads_kv to be an int, got ndarray"),
        (dict(head_dim=2**63), ValueError, r"head_dim < 2\^31, got 9223372036854775808"),
        (dict(head_dim=-(2**80)), ValueError, r"head_dim < 2\^31, got -1208925819614629174706176"),
        (dict(workers="2"), TypeError, "workers to be an int, got str"),
        (dict(workers=2**64), ValueError, "workers < 2"),
        (dict(pack_gqa=1), TypeError, "pack_gqa to be a bool, got int"),
        (dict(pack_sequences="no"), TypeError, "pack_sequences to be a bool, got str"),
        (dict(causal="no"), TypeError, "causal to be a bool, got str"),
        (dict(order=3), TypeError, "order to be a str, got int"),
        (dict(backend=b"cpu"), TypeError, "backend to be a str, got bytes"),
        (dict(backend=""), ValueError, f"{', '.join(_core.BACKENDS)}, got ''"),
        (dict(scheduler=None), ValueError, "auto, got None"),
        (dict(stream="x"), TypeError, "plan: expected stream=None on the cpu backend, got 'x'"),
        (dict(stream="x", backend="cuda"), TypeError, "stream to be an integer handle"),
        (dict(stream=-1, backend="cuda"), ValueError, "handle of 64 bits, got -1"),
        (dict(total_q=7), ValueError, r"cu_seqlens_q\[-1\] <= total_q, the 7 tokens .* got 8"),
        (dict(total_k=7), ValueError, r"cu_seqlens_k\[-1\] <= total_k, the 7 tokens .* got 8"),
        (dict(total_q=8.0), TypeError, "total_q to be an int, got float"),
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
        ([0, 2**63], ValueError, "fit in int32"),
        ([0, 2**64], ValueError, "fit in int32, got 0 to 18446744073709551616"),
        ([0, None], TypeError, "integers, got dtype object"),
        ([0, 2**31 - 1023], ValueError, "at most 2147482624 tokens in cu_seqlens_q"),
        (np.array([0, 8], "M8[s]"), TypeError, "integers, got dtype datetime64"),
        (np.array([(0, 8)], "i4,i4"), TypeError, "integers, got dtype"),
        (np.ma.array([0, 8]), TypeError, "without a mask"),
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
        exactile.plan(seqlens_q=[2**31 - 1024], **many)
    large = exactile.plan(seqlens_q=[2**27], num_heads_q=1, num_heads_kv=1, head_dim=64,
                          dtype="float32", causal=True)  # fmt: skip
    assert large.pairs == 2**27 * (2**27 + 1) // 2
    assert large.valid == 2**20


def test_values_that_are_taken():
    want = exactile.plan([0, 8], **PLAN, causal=True, window=(4, 0), workers=2)
    numbers = {name: np.int64(PLAN[name]) for name in ("num_heads_q", "num_heads_kv", "head_dim")}
    got = exactile.plan(
        np.array([0, 8], ">i4"), **(PLAN | numbers), causal=np.True_, window=np.array([4, 9]),
        workers=np.uint8(2), pack_gqa=np.False_, total_q=np.int32(8),
    )  # fmt: skip
    assert (got.flops, got.window, got.workers) == (want.flops, want.window, 2)
    unbounded = exactile.plan([0, 8], **PLAN, window=(2**31, 2**90))
    assert unbounded.window == (-1, -1)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("fp32", "float32"),
        ("float", "float32"),
        ("half", "float16"),
        ("fp16", "float16"),
        ("bf16", "bfloat16"),
        ("torch.bfloat16", "bfloat16"),
        (np.float16, "float16"),
        (np.dtype("float32"), "float32"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
    ],
)
def test_names_of_dtypes(dtype, name):
    assert exactile.plan([0, 8], **(PLAN | {"dtype": dtype})).dtype == name


def test_dtypes_of_torch():
    require("torch")
    import torch

    for name in _core.DTYPES:
        assert exactile.plan([0, 8], **(PLAN | {"dtype": getattr(torch, name)})).dtype == name
    with pytest.raises(ValueError, match="got 'int8'"):
        exactile.plan([0, 8], **(PLAN | {"dtype": torch.int8}))


def test_names_that_types_know():
    """The Literals are the lists of the compiled module."""
    assert get_args(_arguments.BackendName) == _core.BACKENDS
    assert get_args(_arguments.DtypeName) == _core.DTYPES
    assert get_args(_arguments.OrderName) == _core.ORDERS
    assert get_args(_arguments.SchedulerName) == ("auto", *_core.SCHEDULERS)


def test_absurd_sizes():
    """Costs, FLOPs and bytes past 2^63 are refused, not wrapped around; nothing loops for ever."""
    heads = dict(num_heads_q=2**31 - 1, num_heads_kv=1, head_dim=256, dtype="float32")
    for options in {}, dict(causal=True), dict(window=(0, 0)), dict(scheduler="Individual"):
        with pytest.raises(ValueError, match=r"31 bits|FLOPs|bytes"):
            exactile.plan(seqlens_q=[2**31 - 1024], **heads, **options)
    with pytest.raises(ValueError, match="less than 2\\^63 bytes"):
        exactile.plan(seqlens_q=[2**31 - 1024], seqlens_k=[0], **heads)
    plan = exactile.plan(seqlens_q=[1], seqlens_k=[2**31 - 1024], **PLAN)
    assert plan.pairs == 2**31 - 1024
    with pytest.raises(ValueError, match="at most 2147482624 tokens in cu_seqlens_k"):
        exactile.plan(seqlens_q=[1], seqlens_k=[2**31 - 64], **PLAN)


def test_long_messages_are_whole():
    with pytest.raises(ValueError, match=f"got '{'x' * 2000}'$"):
        exactile.plan([0, 8], **(PLAN | {"order": "x" * 2000}))


def mutate(name, change):
    """A change of one array of the batch."""
    return lambda batch: setattr(batch, name, change(getattr(batch, name)))


BAD_ARRAYS = {
    "rank": (mutate("q", lambda x: x[0]), ValueError, "q of rank 3"),
    "k rank": (mutate("k", lambda x: x[..., None]), ValueError, "k of rank 3"),
    "dtype": (mutate("q", lambda x: x.astype(np.float64)), ValueError, "q of dtype.* got float64"),
    "k dtype": (mutate("k", lambda x: x.astype(np.float16)), ValueError, "k of dtype float32"),
    "v dtype": (mutate("v", lambda x: x.astype(np.int32)), ValueError, "v of dtype float32"),
    "uint16": (mutate("v", lambda x: x.astype(np.uint16)), ValueError, "v of dtype float32"),
    "heads": (mutate("k", lambda x: np.repeat(x, 2, 1)[:, :3]), ValueError, "multiple"),
    "v heads": (mutate("v", lambda x: x[:, :1]), ValueError, r"v of shape \(20 or more, 2, 64\)"),
    "head_dim": (
        mutate("k", lambda x: x[..., :32]),
        ValueError,
        r"k of shape \(20 or more, 2, 64\)",
    ),
    "tokens": (mutate("v", lambda x: x[:-1]), ValueError, r"got \(19, 2, 64\)"),
    "last dimension": (
        mutate("q", lambda x: np.repeat(x, 2, 2)[..., ::2]),
        ValueError,
        "contiguous, got a stride of 2",
    ),
    "list": (mutate("q", lambda x: x.tolist()), TypeError, "q to be a numpy array.* got list"),
    "v list": (mutate("v", lambda x: x.tolist()), TypeError, "v to be a numpy array.* got list"),
    "big-endian": (
        mutate("q", lambda x: x.astype(">f4")),
        ValueError,
        "q in native byte order, got dtype >f4",
    ),
    "k big-endian": (mutate("k", lambda x: x.astype(">f4")), ValueError, "k in native byte order"),
    "object": (mutate("q", lambda x: x.astype(object)), ValueError, "q of dtype .* got object"),
    "structured": (
        mutate("k", lambda x: x.astype([(f"field{i}", "f4") for i in range(50)])),
        ValueError,
        r"k of dtype .* got \[\('field0', .{60,80}\.\.\.$",
    ),
    "datetime": (
        mutate("v", lambda x: x.astype("M8[s]")),
        ValueError,
        "v of dtype .* got datetime",
    ),
    "string": (mutate("q", lambda x: x.astype("U3")), ValueError, "q of dtype .* got <U3"),
    "masked": (mutate("k", np.ma.array), TypeError, "k without a mask"),
    "unaligned": (
        mutate(
            "q", lambda x: np.frombuffer(b"0" + x.tobytes(), x.dtype, x.size, 1).reshape(x.shape)
        ),
        ValueError,
        "q to begin and step by whole elements",
    ),
    "half a step": (
        mutate("k", lambda x: np.lib.stride_tricks.as_strided(x, x.shape, (514, 256, 4))),
        ValueError,
        "k to begin and step by whole elements",
    ),
    "scalar": (mutate("q", lambda x: x[0, 0, 0]), TypeError, r"q to be .* got float32"),
    "no dimension": (
        mutate("q", lambda x: np.array(x[0, 0, 0])),
        ValueError,
        r"q of rank 3 .* got shape \(\)",
    ),
    "many dimensions": (
        mutate("q", lambda x: x[None, None]),
        ValueError,
        r"q of rank 3 .* got shape \(1, 1, 20, 4, 64\)",
    ),
    "too many tokens": (
        mutate("cu_q", lambda x: x + np.arange(2)),
        ValueError,
        r"cu_seqlens_q\[-1\] <= total_q, the 20 tokens of the packed tensors, got 21",
    ),
    "too many keys": (
        mutate("cu_k", lambda x: x + np.arange(2)),
        ValueError,
        r"cu_seqlens_k\[-1\] <= total_k, the 20 tokens .* got 21",
    ),
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


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-46, 1e-39, 3e38, 1e300, 5e-324])
def test_softmax_scale(scale):
    with pytest.raises(ValueError, match="finite softmax_scale > 0 that float32 holds, got"):
        make_batch([20]).run(softmax_scale=scale)


@pytest.mark.parametrize("scale", ["0.1", 1j, [1.0], object()])
def test_softmax_scales_that_are_no_numbers(scale):
    with pytest.raises(TypeError, match="softmax_scale to be a number, got"):
        make_batch([20]).run(softmax_scale=scale)


@pytest.mark.parametrize("scale", [1, np.float32(1), np.int8(1), True])
def test_softmax_scales_of_other_types(scale):
    batch = make_batch([20])
    assert_same_bits(batch.run(softmax_scale=scale)[0], batch.run(softmax_scale=1.0)[0])


def test_streams_of_the_cpu():
    batch = make_batch([20])
    for stream in "x", 0, object():
        with pytest.raises(TypeError, match="expected stream=None on the cpu backend, got"):
            batch.run(stream=stream)
        plan = exactile.plan([0, 20], **PLAN)
        with pytest.raises(TypeError, match="varlen_prefill: expected stream=None on the cpu"):
            plan.run(batch.q, batch.k, batch.v, stream=stream)


def test_an_option_that_there_is_not():
    batch, out = make_batch([20]), np.full((20, 4, 64), 7, np.float32)
    with pytest.raises(TypeError, match=r"varlen_prefill\(\) got an unexpected keyword .*'casual'"):
        batch.run(out=out, casual=True)
    assert (out == 7).all()


@pytest.mark.parametrize("function", [exactile.varlen_prefill, exactile.Plan.run])
def test_signatures_name_the_options_of_a_run(function):
    named = inspect.signature(function).parameters
    assert set(_arguments.RunOptions.__annotations__) <= set(named)
    assert all(x.kind is not inspect.Parameter.VAR_KEYWORD for x in named.values())
