"""Attention over disjoint sets of keys, merged: `exactile.merge`, on the CPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exactile
from abilities import ISAS, module, needs, require
from cases import DTYPES, assert_same_bits, make_batch
from exactile import _core
from merge_cases import SHAPES, check_merged, draw_parts, merge_float64, split_attention

torch = module("torch")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_parts", [1, 2, 4, 5, 9])
def test_against_float64(dtype, shape, num_parts):
    outs, lses = draw_parts(shape, num_parts, dtype)
    got = exactile.merge(outs, lses, return_lse=True)
    check_merged(got, outs, lses)
    assert_same_bits(exactile.merge(outs, lses), got[0])
    if num_parts == 2:
        assert_same_bits(exactile.merge(outs[0], lses[0], outs[1], lses[1]), got[0])


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    require(isa)
    code = """
import exactile
from merge_cases import *
for dtype in DTYPES:
    for shape in SHAPES:
        outs, lses = draw_parts(shape, 3, dtype)
        check_merged(exactile.merge(outs, lses, return_lse=True), outs, lses)
print(exactile.info()["backends"]["cpu"]["isa"])
"""
    environment = os.environ | {"EXACTILE_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == isa + "\n", done.stderr


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_parts", [2, 3, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_split_keys_are_as_good_as_whole(dtype, num_parts, causal):
    """The keys of every sequence in parts, of which some have none."""
    lens_k = [40, 5, 150, 3, 0] if not causal else [40, 5, 150, 3, 7]
    batch = make_batch([33, 0, 130, 1, 7], lens_k, dtype=dtype, causal=causal)
    outs, lses = split_attention(batch, num_parts)
    assert any(np.isneginf(lse).any() for lse in lses) or num_parts == 2
    out, lse = exactile.merge(outs, lses, return_lse=True)
    whole, whole_lse = batch.run()
    assert_same_bits(np.isneginf(lse), np.isneginf(whole_lse))
    seen = np.isfinite(whole_lse)
    exact = {"float32": 2e-6, "float16": 2e-5, "bfloat16": 2e-4}[dtype]  # as the kernels are
    np.testing.assert_allclose(lse[seen], whole_lse[seen], atol=exact, rtol=1e-6)
    # A part's result is rounded to the dtype before it is merged, and the merged one again.
    unit = {"float32": 2e-6, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    largest = max(np.abs(x.astype(np.float64)).max() for x in outs)
    difference = np.abs(out.astype(np.float64) - whole.astype(np.float64))
    assert difference.max() <= 1.5 * unit * largest


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_one_part_saw_is_that_parts_bits(dtype):
    outs, lses = draw_parts((20, 3, 72), 3, dtype)
    storage = np.uint32 if dtype == "float32" else np.uint16
    rng = np.random.default_rng(1)
    for x in outs:  # any bits at all: subnormal numbers, NaN of any payload, -0
        x[:] = rng.integers(0, np.iinfo(storage).max, x.shape, dtype=storage).view(x.dtype)
    lses[0][:] = -0.0
    out, lse = exactile.merge(outs[:1], lses[:1], return_lse=True)
    assert_same_bits(out, outs[0])
    assert_same_bits(lse, lses[0])
    saw = rng.integers(0, 3, lses[0].shape)
    for i in range(3):
        lses[i][saw != i] = -np.inf
    out, lse = exactile.merge(outs, lses, return_lse=True)
    assert_same_bits(
        out, np.choose(saw.T[..., None], [x.view(storage) for x in outs]).view(out.dtype)
    )
    assert_same_bits(lse, np.choose(saw, lses))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_a_part_holds_that_saw_no_key_does_not_matter(dtype, poison):
    outs, lses = draw_parts((6, 2, 64), 4, dtype)
    for x in outs:
        x[0] = poison
    outs[1][1:3] = poison
    for lse in lses:
        lse[:, 0] = -np.inf
    lses[1][:, 1:3] = -np.inf
    out, lse = exactile.merge(outs, lses, return_lse=True)
    check_merged((out, lse), outs, lses)
    assert (out[0] == 0).all()
    assert np.isneginf(lse[:, 0]).all()


@pytest.mark.parametrize(
    ("a", "b"),
    [(1e30, -1e30), (-1e30, 1e30), (1e30, 1e30), (-1e30, -1e30), (3e38, -3e38), (88.0, -88.0)],
)
def test_extreme_sums(a, b):
    outs, lses = draw_parts((4, 2, 64), 2, "float32")
    lses[0][:], lses[1][:] = a, b
    out, lse = exactile.merge(outs, lses, return_lse=True)
    check_merged((out, lse), outs, lses)
    assert np.isfinite(out).all()
    lses[1][:] = -np.inf
    out, lse = exactile.merge(outs, lses, return_lse=True)
    assert_same_bits(out, outs[0])
    assert_same_bits(lse, lses[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "value", [np.inf, np.nan, np.array(0x7FFFFFFF, np.uint32).view(np.float32)]
)
@pytest.mark.parametrize("num_parts", [1, 2, 6])
def test_a_sum_that_is_no_number_makes_its_row_nan(dtype, value, num_parts):
    outs, lses = draw_parts((6, 2, 64), num_parts, dtype)
    want, want_lse = exactile.merge(outs, lses, return_lse=True)
    lses[num_parts // 2][1, 3] = value
    out, lse = exactile.merge(outs, lses, return_lse=True)
    assert np.isnan(out[3, 1].astype(np.float32)).all()
    assert np.isnan(lse[1, 3])
    out[3, 1], lse[1, 3] = want[3, 1], want_lse[1, 3]
    assert_same_bits(out, want)
    assert_same_bits(lse, want_lse)


def test_strides():
    outs, lses = draw_parts((37, 3, 64), 3, "float16")
    want, want_lse = exactile.merge(outs, lses, return_lse=True)
    views = [
        np.concatenate([outs[0]] * 2, axis=1)[:, 3:],
        np.ascontiguousarray(outs[1].transpose(1, 0, 2)).transpose(1, 0, 2),
        outs[2][::-1].copy()[::-1],
    ]
    lse_views = [
        lses[0].T.copy().T,
        np.repeat(lses[1], 3, axis=1)[:, ::3],
        lses[2][::-1].copy()[::-1],
    ]
    wide = np.zeros((37, 6, 100), np.float16)
    out, lse = exactile.merge(views, lse_views, out=wide[:, ::2, :64], return_lse=True)
    assert_same_bits(out, want)
    assert_same_bits(lse, want_lse)
    assert not wide[:, 1::2].any()
    assert not wide[..., 64:].any()


@pytest.mark.parametrize("place", [0, 1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(dtype, place):
    outs, lses = draw_parts((300, 4, 136), 5, dtype)
    want = exactile.merge(outs, lses)
    out = exactile.merge(outs, lses, out=outs[place])
    assert out is outs[place]
    assert_same_bits(out, want)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads):
    outs, lses = draw_parts((333, 8, 128), 3, "bfloat16")
    want = exactile.merge(outs, lses, return_lse=True)
    exactile.set_num_threads(threads)
    try:
        got = exactile.merge(outs, lses, return_lse=True)
    finally:
        exactile.set_num_threads(None)
    for x, y in zip(got, want, strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("shape", [(0, 4, 64), (5, 0, 64), (3, 2, 0)])
def test_nothing_to_do(shape):
    outs, lses = draw_parts(shape, 2, "float32")
    out, lse = exactile.merge(outs, lses, return_lse=True)
    assert out.shape == shape
    want = merge_float64(outs, lses)[1]
    np.testing.assert_allclose(lse, want, rtol=1e-6, atol=1e-6)


def test_bfloat16_as_storage():
    outs, lses = draw_parts((5, 2, 64), 2, "bfloat16")
    want = exactile.merge(outs, lses)
    bits = [x.view(np.uint16) for x in outs]
    out = exactile.merge(bits, lses, dtype="bfloat16")
    assert out.dtype == np.uint16
    assert_same_bits(out, want.view(np.uint16))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_cases(data):
    """Any shape, number of parts, strides of the log-sum-exps, and rows that parts did not see."""
    tokens, heads = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 5)), label="rows")
    head_dim_v = data.draw(st.sampled_from([1, 7, 16, 64, 96, 128, 130, 256, 300]), label="dim")
    dtype = data.draw(st.sampled_from(list(DTYPES)), label="dtype")
    num_parts = data.draw(st.integers(1, 7), label="parts")
    spread = data.draw(st.sampled_from([0.1, 3.0, 100.0, 1e5]), label="spread")
    seed = data.draw(st.integers(0, 2**16), label="seed")
    outs, lses = draw_parts((tokens, heads, head_dim_v), num_parts, dtype, seed=seed, spread=spread)
    rng = np.random.default_rng(seed)
    for x, lse in zip(outs, lses, strict=True):
        unseen = rng.random(lse.shape) < data.draw(st.sampled_from([0.0, 0.3, 0.9]))
        lse[unseen] = -np.inf
        x[unseen.T] = np.nan
    check_merged(exactile.merge(outs, lses, return_lse=True), outs, lses)


# --- bad input ----------------------------------------------------------------------------------


def good():
    outs, lses = draw_parts((6, 2, 64), 2, "float32")
    return {"out_a": outs[0], "lse_a": lses[0], "out_b": outs[1], "lse_b": lses[1]}


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


BAD = {
    "dtype": ({"out_b": lambda x: x.astype(np.float16)}, "out_b of dtype float32, got float16"),
    "float64": ({"out_a": lambda x: x.astype(np.float64)}, "out_a of dtype .*, got float64"),
    "uint16": ({"out_a": lambda x: x.view(np.uint16)[..., :64]}, "of dtype .*, got uint16"),
    "rank": ({"out_b": lambda x: x[0]}, r"out_b of rank 3 .*, got shape \(2, 64\)"),
    "tokens": ({"out_b": lambda x: x[1:]}, r"out_b of shape \(6, 2, 64\), got \(5, 2, 64\)"),
    "heads": ({"out_b": lambda x: x[:, :1]}, r"out_b of shape \(6, 2, 64\), got \(6, 1, 64\)"),
    "head_dim_v": ({"out_b": lambda x: x[..., 1:]}, r"of shape \(6, 2, 64\), got \(6, 2, 63\)"),
    "columns apart": (
        {"out_b": lambda x: np.repeat(x, 2, axis=2)[..., ::2]},
        "the last dimension of out_b to be contiguous, got a stride of 2 elements",
    ),
    "dtype of lse": (
        {"lse_b": lambda x: x.astype(np.float16)},
        "lse_b of dtype float32, got float16",
    ),
    "lse in float64": ({"lse_a": lambda x: x.astype(np.float64)}, "lse_a .*, got float64"),
    "rank of lse": (
        {"lse_a": lambda x: x[..., None]},
        r"lse_a of rank 2 .*, got shape \(2, 6, 1\)",
    ),
    "lse transposed": ({"lse_b": lambda x: x.T}, r"lse_b of shape \(2, 6\), got \(6, 2\)"),
    "lse of more tokens": (
        {"lse_b": lambda x: np.repeat(x, 2, axis=1)},
        r"lse_b of shape \(2, 6\), got \(2, 12\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(case):
    changes, message = BAD[case]
    arrays = good()
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    out = np.full((6, 2, 64), 7, np.float32)
    with pytest.raises(ValueError, match=f"merge: expected .*{message}"):
        exactile.merge(**arrays, out=out)
    assert (out == 7).all()


def bad_outputs():
    shared = np.zeros((7, 2, 64), np.float32)
    lse_room = np.zeros((6, 2, 64), np.float32)
    stepped = np.zeros(868, np.float32)
    return {
        "dtype": ({}, np.zeros((6, 2, 64), np.float16), "out of dtype float32, got float16"),
        "shape": ({}, np.zeros((6, 2, 32), np.float32), r"out of shape .*, got \(6, 2, 32\)"),
        "read only": ({}, read_only(lse_room), "out to be writable, got a read-only array"),
        "rows that are one": (
            {},
            np.broadcast_to(lse_room[:1], (6, 2, 64)),
            "out to be writable|strides of out that lead to every element once",
        ),
        "a row later": ({"out_b": shared[:-1]}, shared[1:], "got one that overlaps out_b"),
        "reversed": ({"out_a": shared[:-1]}, shared[-2::-1], "got one that overlaps out_a"),
        "over a lse that steps": (
            {"lse_b": stepped[:120].reshape(6, 20)[:, :2].T},
            stepped[100:].reshape(6, 2, 64),
            "got one that overlaps lse_b",
        ),
        "over a lse": (
            {"lse_b": lse_room.reshape(-1)[:12].reshape(2, 6)},
            lse_room,
            "got one that overlaps lse_b",
        ),
    }


@pytest.mark.parametrize("case", bad_outputs())
def test_bad_outputs(case):
    inputs, out, message = bad_outputs()[case]
    before = out.copy()
    with pytest.raises(ValueError, match=f"merge: expected .*({message})"):
        exactile.merge(**(good() | inputs), out=out)
    assert_same_bits(out, before)


def test_bad_counts_and_kinds():
    x = good()
    outs, lses = [x["out_a"], x["out_b"]], [x["lse_a"], x["lse_b"]]
    with pytest.raises(ValueError, match=r"merge: expected at least one result .* got 0 results"):
        exactile.merge([], [])
    with pytest.raises(ValueError, match=r"merge: .* got 2 results and 1 log-sum-exps"):
        exactile.merge(outs, lses[:1])
    with pytest.raises(TypeError, match=r"merge: expected two lists, .* got list, ndarray"):
        exactile.merge(outs, lses[0])
    with pytest.raises(TypeError, match=r"merge: expected two lists, .* got list, list, ndarray"):
        exactile.merge(outs, lses, outs[0], lses[0])
    with pytest.raises(TypeError, match=r"merge: expected out_b and lse_b .* got no lse_b"):
        exactile.merge(outs[0], lses[0], outs[1])
    with pytest.raises(
        TypeError, match=r"merge: expected out_a\[1\] to be a numpy array.* got str"
    ):
        exactile.merge([outs[0], "x"], lses)
    with pytest.raises(ValueError, match=r"merge: expected lse_a\[1\] of shape"):
        exactile.merge(outs, [lses[0], lses[1].T])
    with pytest.raises(TypeError, match=r"merge: expected stream=None on the cpu backend, got 3"):
        exactile.merge(outs, lses, stream=3)
    with pytest.raises(ValueError, match=r"merge: dtype: expected one of float32"):
        exactile.merge(outs, lses, dtype="float8")
    with pytest.raises(ValueError, match=r"merge: expected out_a.* of dtype float16, got float32"):
        exactile.merge(outs, lses, dtype="float16")


class Tensor(ctypes.Structure):
    """DLPack's, with what an unversioned capsule has behind it."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("rest", ctypes.c_void_p * 2),
    ]


class Elsewhere:
    """An array that says it lies in memory of a device of DLPack's type `device`."""

    dtype = np.dtype(np.float32)
    shape = (6, 2, 64)

    def __init__(self, device):
        self.device = device
        self.sizes = (ctypes.c_int64 * 3)(*self.shape)
        shape = ctypes.cast(self.sizes, ctypes.POINTER(ctypes.c_int64))
        self.tensor = Tensor(4096, (device, 0), 3, (2, 32, 1, 0), shape, None, 0)

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self):
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self.tensor), b"dltensor", None)


def test_memory_that_no_backend_reaches():
    arrays = good() | {"out_a": Elsewhere(8)}
    message = "merge: expected arrays in CPU, CUDA or SYCL memory, got them on Metal 0"
    with pytest.raises(ValueError, match=message):
        exactile.merge(**arrays)
    with pytest.raises(ValueError, match=message):
        exactile.merge([arrays["out_a"]], [arrays["lse_a"]])
    with pytest.raises(
        ValueError, match=r"merge: expected out_b on the device of out_a, CPU, got C"
    ):
        exactile.merge(**(good() | {"out_b": Elsewhere(_core.DEVICE_CUDA)}))


# --- torch --------------------------------------------------------------------------------------


def tensors():
    return {name: torch.from_numpy(x) for name, x in good().items()}


@needs("torch")
def test_torch_in_torch_out():
    want, want_lse = exactile.merge(**good(), return_lse=True)
    out, lse = exactile.merge(**tensors(), return_lse=True)
    assert_same_bits(out.numpy(), want)
    assert_same_bits(lse.numpy(), want_lse)
    halves = [x.bfloat16() for x in (tensors()["out_a"], tensors()["out_b"])]
    out = exactile.merge(halves, [tensors()["lse_a"], tensors()["lse_b"]])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), torch.from_numpy(want), atol=2e-2, rtol=2e-2)


@needs("torch")
def test_autograd_sees_the_write_and_gradients_are_refused():
    x = tensors()
    version = x["out_a"]._version
    exactile.merge(**x)
    assert x["out_a"]._version == version
    exactile.merge(**x, out=x["out_a"])
    assert x["out_a"]._version > version
    for name in x:
        y = tensors()
        y[name].requires_grad_()
        with pytest.raises(ValueError, match=f"merge: expected {name} not to require grad"):
            exactile.merge(**y)
        with torch.no_grad():
            exactile.merge(**y)
    out = torch.full((6, 2, 64), 7.0)
    with pytest.raises(ValueError, match=r"merge: expected lse_b of shape"):
        exactile.merge(**(tensors() | {"lse_b": x["lse_b"].T}), out=out)
    assert out._version == 0


@needs("torch")
@pytest.mark.filterwarnings("ignore")
def test_transformations_of_torch():
    from torch.autograd import forward_ad

    x = tensors()
    with pytest.raises(TypeError, match=r"merge: expected a call outside torch.jit.trace"):
        torch.jit.trace(lambda out_a: exactile.merge(**(x | {"out_a": out_a})), (x["out_a"],))
    with forward_ad.dual_level():
        for name in x:
            dual = forward_ad.make_dual(x[name], torch.ones_like(x[name]))
            with pytest.raises(TypeError, match=r"merge: expected tensors without tangents"):
                exactile.merge(**(x | {name: dual}))
    torch._dynamo.reset()
    want = exactile.merge(**x) + 1
    compiled = torch.compile(lambda out_a: exactile.merge(**(x | {"out_a": out_a})) + 1,
                             backend="eager")  # fmt: skip
    assert torch.equal(compiled(x["out_a"]), want)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="exactile computes eagerly"):
        torch.compile(lambda: exactile.merge(**x), backend="eager", fullgraph=True)()
    torch._dynamo.reset()
