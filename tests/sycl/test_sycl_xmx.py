"""The XMX kernel's logic, where no Intel GPU is: the same template over emulated atoms.

The emulation follows the layouts of the matrix engines and answers a 2D block message that breaks a
rule of the hardware with NaN. What the real atoms become is test_xmx_isa.py's.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import exactile
from cases import assert_same_bits, check_poison_stays, make_batch
from exactile import _core, _sycl
from sycl_device import compile_ahead, dpnp, get, needs_device, on_device, put, run, small_plan

pytestmark = needs_device

ROWS = [
    row[1:]
    for row in _core.support()
    if row[0] == "sycl" and _core.sycl_shape("xmx_emulated", *row[1:]) is not None
]
MASKS = [{}, {"causal": True}, {"window": (50, 20)}, {"window": (20, -1)}]
LENS_Q = [150, 0, 31, 1, 129, 64, 17]
LENS_K = [150, 9, 90, 1, 100, 0, 200]
# A kernel takes the CPU device's compiler about 8 s. Element types differ in two atoms.
COMPILED = [row for row in ROWS if row[0] == "bfloat16" or row[1] in (64, 128)]


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    """The emulation, for all of this file; what the file runs, compiled on both cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXACTILE_SYCL_KERNEL", "xmx_emulated")
        plans = [small_plan(*row, "ValidOnlyPersistent") for row in COMPILED]
        plans += [small_plan("bfloat16", 128, 128, policy) for policy in exactile.SCHEDULERS[:2]]
        compile_ahead(plans)
        yield


def test_rows():
    """All 16-bit rows of the backend."""
    assert {row[0] for row in ROWS} == {"float16", "bfloat16"}
    assert {row[1:] for row in ROWS} == {row[2:] for row in _core.support() if row[0] == "sycl"}


@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), COMPILED)
@pytest.mark.parametrize("mask", MASKS, ids=["full", "causal", "window", "left"])
def test_supported(dtype, head_dim, head_dim_v, mask):
    batch = make_batch(
        LENS_Q, LENS_K, dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v, **mask
    )
    batch.check(*run(batch))


@pytest.mark.parametrize("mask", MASKS[:3], ids=["full", "causal", "window"])
def test_schedule(mask):
    """Policies, order and workers change no bit; nor packing, as sub-groups keep their tokens."""
    batch = make_batch(LENS_Q, LENS_K, dtype="bfloat16", head_dim=128, **mask)
    first = run(batch, scheduler="Individual", pack_gqa=False)
    batch.check(*first)
    for scheduler, pack_gqa, workers in itertools.product(
        exactile.SCHEDULERS, (False, True), (1, 3)
    ):
        orders = (None,) if scheduler == "Individual" else ("natural", "head_major")
        for order in orders:
            options = {"pack_gqa": pack_gqa, "order": order, "workers": workers}
            for got, want in zip(run(batch, scheduler=scheduler, **options), first, strict=True):
                assert_same_bits(got, want)


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (8, 1), (16, 1), (3, 3)])
@pytest.mark.parametrize("pack_gqa", [False, True])
def test_heads(heads, pack_gqa):
    """Six heads of two: a packed tile of 42 tokens, whose last rows are another tile's first."""
    batch = make_batch([65, 1, 130], heads=heads, dtype="float16", causal=True)
    batch.check(*run(batch, pack_gqa=pack_gqa))


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129])
def test_lengths_around_a_block(length):
    for lens_q, lens_k in (([length], [length]), ([3, length], [length, 5]), ([length], [1])):
        batch = make_batch(lens_q, lens_k, dtype="bfloat16", window=(40, 3))
        batch.check(*run(batch))


def test_no_keys():
    out, lse = run(make_batch([5, 70], [0, 0], dtype="float16"))
    assert (out == 0).all()
    assert (lse == -np.inf).all()


@pytest.mark.parametrize("factor", [30, -30, 0])
def test_references_follow_the_scores(factor):
    """Rising, falling and all equal along the keys; the first far below 0, where 2^x is 0."""
    batch = make_batch([130], [400], dtype="float16", head_dim=64, causal=True)
    batch.q[...] = np.abs(batch.q)
    along = np.linspace(-1, 1, 400, dtype=np.float32)[:, None, None]
    batch.k[...] = (factor * along * np.abs(batch.k)).astype(batch.k.dtype)
    batch.check(*run(batch))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_stays_in_its_sequence(poison):
    check_poison_stays(run, "bfloat16", poison, "auto")


def padded(x, columns, fill):
    """(array, its inside): rows, heads and columns around x, filled."""
    tokens, heads, head_dim = x.shape
    around = put(np.full((tokens + 256, heads + 2, head_dim + columns), fill, x.dtype))
    return around, around[128:-128, 1:-1, :head_dim]


def run_padded(batch, columns):
    plan = exactile.plan(
        batch.cu_q,
        batch.cu_k,
        num_heads_q=4,
        num_heads_kv=2,
        head_dim=64,
        dtype=batch.q.dtype.name,
        causal=True,
        backend="sycl",
    )
    arrays = {}
    for name in "qkv":
        _, arrays[name] = padded(getattr(batch, name), columns, np.nan)
        arrays[name][...] = getattr(on_device(batch), name)
    around, out = padded(batch.q, columns, 7)
    result, lse = plan.run(**arrays, out=out, return_lse=True)
    assert result is out
    return get(around, batch.q.dtype), dpnp.asnumpy(lse)


def test_strides_and_what_lies_around():
    """Slices of larger arrays: nothing outside of out is written, nothing else read."""
    batch = make_batch([33, 65], dtype="bfloat16", causal=True)
    want, want_lse = run(batch)
    around, lse = run_padded(batch, columns=32)
    assert_same_bits(around[128:-128, 1:-1, :64].copy(), want)
    assert_same_bits(lse, want_lse)
    around[128:-128, 1:-1, :64] = 7
    assert (around == 7).all()


def test_arrays_that_2d_messages_do_not_reach():
    batch = make_batch([33, 65], dtype="bfloat16", causal=True)
    with pytest.raises(ValueError, match=r"tokens and heads of q on 64-byte .*EXACTILE_SYCL_KERN"):
        run_padded(batch, columns=8)


def test_own_scheduler():
    source = """
#include <exactile/scheduler/valid_only.hpp>
struct Backwards : exactile::ValidOnlyIndividual {
  EXACTILE_HOST_DEVICE Backwards(const Params& list, int group)
      : exactile::ValidOnlyIndividual(list, list.num_tiles() - 1 - group) {}
};
"""
    batch = make_batch(LENS_Q, LENS_K, dtype="float16", causal=True)
    want = run(batch)
    got = run(batch, scheduler=exactile.Scheduler("Backwards", source=source))
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


class TestChoice:
    """What a device is told by its generation; no kernel is compiled."""

    @pytest.fixture(autouse=True)
    def _nothing_forced(self, monkeypatch):
        monkeypatch.delenv("EXACTILE_SYCL_KERNEL")

    @pytest.mark.parametrize("generation", ["xe_hpc", "xe2"])
    def test_generations_with_2d_messages(self, generation):
        for row in ROWS:
            assert _sycl._choose_kernel({"xmx": generation}, *row) == f"xmx_{generation}"

    def test_forced_where_it_cannot_run(self, monkeypatch):
        monkeypatch.setenv("EXACTILE_SYCL_KERNEL", "xmx_xe2")
        with pytest.raises(RuntimeError, match="lacks the matrix engines that the kernel xmx_xe2"):
            run(make_batch([5], dtype="float16"))

    def test_the_others(self):
        assert _sycl._choose_kernel({"xmx": "xe2"}, "float32", 64, 64) == "portable"
        assert _sycl._choose_kernel({"xmx": ""}, "bfloat16", 64, 64) == "portable"
        assert _sycl._choose_kernel(None, "bfloat16", 64, 64) == "portable"
