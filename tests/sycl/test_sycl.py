"""The sycl backend against float64, and what must not change a bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import exactile
from cases import (
    DTYPES,
    STRIDED,
    assert_same_bits,
    check_any_place_of_a_batch,
    check_poison_stays,
    make_batch,
)
from golden import ZIPF
from sycl_device import (
    ROWS,
    compile_ahead,
    dpnp,
    get,
    needs_device,
    on_device,
    plan_of,
    put,
    run,
    small_plan,
)

pytestmark = needs_device

LENS_Q = [300, 0, 31, 1, 129, 64]
LENS_K = [300, 9, 90, 1, 100, 0]
MASKS = [{}, {"causal": True}, {"window": (50, 20)}]


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    """All that this file runs, compiled on both cores."""
    compile_ahead([small_plan(*row, policy) for row in ROWS for policy in exactile.SCHEDULERS])


@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), ROWS)
def test_supported(dtype, head_dim, head_dim_v):
    """Every row under every mask and policy: right, and the same bits."""
    for mask in MASKS:
        batch = make_batch(
            LENS_Q, LENS_K, dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v, **mask
        )
        first = run(batch, scheduler="Individual")
        batch.check(*first)
        for scheduler in ("ValidOnlyIndividual", "ValidOnlyPersistent", "auto"):
            for got, want in zip(run(batch, scheduler=scheduler), first, strict=True):
                assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS, ids=["full", "causal", "window"])
def test_schedule(dtype, mask):
    """Packing, order and workers change no bit either."""
    batch = make_batch(LENS_Q, LENS_K, dtype=dtype, head_dim=96, **mask)
    first = run(batch, scheduler="Individual")
    for scheduler, pack_gqa, workers in itertools.product(
        exactile.SCHEDULERS, (False, True), (1, 3)
    ):
        orders = (None,) if scheduler == "Individual" else (None, "natural", "head_major")
        for order in orders:
            options = {"pack_gqa": pack_gqa, "order": order, "workers": workers}
            again = run(batch, scheduler=scheduler, **options)
            for got, want in zip(again, first, strict=True):
                assert_same_bits(got, want)


@pytest.mark.parametrize("kernel", ["portable", "xmx_emulated"])
@pytest.mark.parametrize("pack_gqa", [False, True])
def test_in_place(monkeypatch, kernel, pack_gqa):
    monkeypatch.setenv("EXACTILE_SYCL_KERNEL", kernel)
    batch = make_batch([150, 1, 0, 70], heads=(8, 2), dtype="float16", causal=True)
    want = run(batch, pack_gqa=pack_gqa)[0]
    q, k, v = (dpnp.asarray(x) for x in (batch.q, batch.k, batch.v))
    out = exactile.varlen_prefill(q, k, v, batch.cu_q, causal=True, pack_gqa=pack_gqa, out=q)
    assert out is q
    assert_same_bits(dpnp.asnumpy(q), want)
    for out in (q[::-1], q[:1] + dpnp.zeros_like(q[:1])):
        with pytest.raises(ValueError, match=r"out apart from q, k and v|out of shape"):
            exactile.varlen_prefill(q, k, v, batch.cu_q, out=out)


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (8, 1), (3, 3)])
@pytest.mark.parametrize("pack_gqa", [False, True])
def test_heads(heads, pack_gqa):
    batch = make_batch([65, 1, 130], heads=heads, dtype="float16", causal=True)
    batch.check(*run(batch, pack_gqa=pack_gqa))


@pytest.mark.parametrize("length", [1, 2, 15, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_lengths_around_a_block(length):
    for lens_q, lens_k in (([length], [length]), ([3, length], [length, 5]), ([length], [1])):
        batch = make_batch(lens_q, lens_k, dtype="bfloat16", window=(40, 3))
        batch.check(*run(batch))


@pytest.mark.parametrize("lens", [[], [0], [0, 0, 0]])
def test_nothing_to_do(lens):
    batch = make_batch(lens)
    out, lse = run(batch)
    assert out.shape == (0, 4, 64)
    assert lse.shape == (4, 0)


def test_no_keys():
    batch = make_batch([5, 70], [0, 0])
    out, lse = run(batch)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


def test_golden_counts():
    """Work-groups of the Zipf batch, counted by the kernel; a window of one key keeps it short."""
    queue = dpnp.ones(1).sycl_queue
    total, shape = sum(ZIPF), {"dtype": "uint16", "sycl_queue": queue}
    q = dpnp.zeros((total, 32, 128), **shape)
    k, v = (dpnp.zeros((total, 8, 128), **shape) for _ in range(2))
    launched = {"Individual": 32768, "ValidOnlyIndividual": 3808, "ValidOnlyPersistent": 2}
    for scheduler in exactile.SCHEDULERS:
        plan = exactile.plan(
            seqlens_q=ZIPF,
            num_heads_q=32,
            num_heads_kv=8,
            head_dim=128,
            dtype="bfloat16",
            window=(0, 0),
            scheduler=scheduler,
            pack_gqa=False,
            backend="sycl",
            workers=2,
        )
        counts = dpnp.zeros(2, dtype="int32", sycl_queue=queue)
        out = dpnp.empty_like(q)
        stream = queue.addressof_ref()
        plan._core.run(q, k, v, out, stream=stream, work_groups=counts.data.ptr)
        assert dpnp.asnumpy(counts).tolist() == [launched[scheduler], 3808]
        assert plan.launched == launched[scheduler]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_alone_and_in_any_place_of_a_batch(dtype):
    check_any_place_of_a_batch(run, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_stays_in_its_sequence(dtype, poison, scheduler):
    check_poison_stays(run, dtype, poison, scheduler)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_what_lies_around(dtype):
    """Slices of larger arrays: nothing outside of out is written, nothing else read."""
    batch = make_batch([33, 65], dtype=dtype, causal=True)
    want = run(batch)
    device = on_device(batch)
    arrays = {}
    for name in "qkv":
        x = getattr(device, name)
        tokens, heads, head_dim = x.shape
        poison = put(np.full((tokens + 256, heads + 2, head_dim + 16), np.nan, DTYPES[dtype]))
        inner = poison[128:-128, 1:-1, :head_dim]
        inner[...] = x
        arrays[name] = inner
    buffer = put(np.full((98 + 256, 6, 80), 7, DTYPES[dtype]))
    out = buffer[128:-128, 1:-1, :64]
    plan = plan_of(batch)
    result, lse = plan.run(**arrays, out=out, return_lse=True)
    assert result is out
    assert_same_bits(get(out, batch.q.dtype), want[0])
    assert_same_bits(dpnp.asnumpy(lse), want[1])
    around = get(buffer, batch.q.dtype)
    around[128:-128, 1:-1, :64] = 7
    assert (around == 7).all()


class TestOwnScheduler:
    SOURCE = """
#include <exactile/scheduler/valid_only.hpp>
struct Reverse : exactile::ValidOnlyIndividual {
  EXACTILE_HOST_DEVICE Reverse(const Params& list, int group)
      : exactile::ValidOnlyIndividual(list, list.num_tiles() - 1 - group) {}
};
"""

    def test_right_and_the_same_bits(self):
        batch = make_batch(LENS_Q, LENS_K, dtype="bfloat16", causal=True)
        out, lse = run(batch, scheduler=exactile.Scheduler("Reverse", source=self.SOURCE))
        batch.check(out, lse)
        want, want_lse = run(batch, scheduler="ValidOnlyIndividual")
        assert_same_bits(out, want)
        assert_same_bits(lse, want_lse)

    def test_counter(self):
        source = "#include <exactile/scheduler/persistent.hpp>\n" + (
            "struct Mine : exactile::ValidOnlyPersistent {\n"
            "  using ValidOnlyPersistent::ValidOnlyPersistent;\n};\n"
        )
        own = exactile.Scheduler("Mine", source=source, like="ValidOnlyPersistent")
        batch = make_batch(LENS_Q, LENS_K)
        plan = plan_of(batch, scheduler=own)
        assert plan.scheduler == "Mine"
        device = on_device(batch)
        for _ in range(3):
            out, lse = plan.run(device.q, device.k, device.v, return_lse=True)
            batch.check(get(out, batch.q.dtype), dpnp.asnumpy(lse))

    def test_stride(self):
        """By as many work-groups as are launched."""
        own = exactile.Scheduler("Strided", source=STRIDED, like="ValidOnlyPersistent")
        batch = make_batch(LENS_Q, LENS_K, dtype="bfloat16", causal=True)
        out, lse = run(batch, scheduler=own, workers=3)
        want, want_lse = run(batch, scheduler="ValidOnlyPersistent")
        assert_same_bits(out, want)
        assert_same_bits(lse, want_lse)

    def test_what_does_not_compile(self):
        own = exactile.Scheduler("Broken", source="struct Broken { nonsense; };")
        with pytest.raises(RuntimeError, match=r"SYCL compiler failed .*Broken[\s\S]*nonsense"):
            run(make_batch([5]), scheduler=own)

    def test_a_crash_of_the_compiler_is_an_error(self):
        own = exactile.Scheduler("Crash", source="#pragma clang __debug crash\nstruct Crash {};")
        with pytest.raises(RuntimeError, match=r"SYCL compiler (failed|ended with signal)"):
            run(make_batch([5]), scheduler=own)
