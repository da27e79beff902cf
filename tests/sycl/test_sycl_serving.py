"""Serving attention on SYCL, by both kernels: features and pairs of them against float64, pages and
policies bit by bit, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

import exactile
from cases import LENS_K, LENS_Q, MASKS, Batch, assert_same_bits, make_batch
from exactile import _core, _sycl
from serving import (
    FEATURES,
    SENTINEL,
    counted,
    in_pages,
    lengths,
    some_sinks,
    some_slopes,
    tokens,
    with_features,
    with_scores,
)
from sycl_device import compile_ahead, dpnp, get, needs_device, put, put_view, small_plan

pytestmark = needs_device

KERNELS = ["portable", "xmx_emulated"]
DTYPES_OF = {"portable": ["float32", "float16", "bfloat16"], "xmx_emulated": ["bfloat16"]}
EACH = [(kernel, dtype) for kernel in KERNELS for dtype in DTYPES_OF[kernel]]
XMX_HEAD_DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192)]
"""Each has registers of its own."""

KIND_OF = {name: kind for kind, names in FEATURES.items() for name in names}
UNALIGNED = {name for name in KIND_OF if "gaps" in name or "reversed" in name}
"""Pages that 2D block messages do not reach: test_pages_that_2d_messages_do_not_reach."""

OF_KINDS = {kind: next(name for name in names if name not in UNALIGNED)
            for kind, names in FEATURES.items()}  # fmt: skip
PAIRS = list(itertools.combinations(OF_KINDS.values(), 2))
ALL = ["window", "wide softcap", "sinks", "alibi of sequences", "seqused_q", "seqused_k", "padding"]
PAGES = "pages of 16, side by side"


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    """What this file runs, compiled on both cores: of a layout and a variant of the scores each
    dtype; of both every head_dim too, and in bfloat16 every policy."""
    with pytest.MonkeyPatch.context() as patch:
        for kernel, dtype in EACH:
            patch.setenv("EXACTILE_SYCL_KERNEL", kernel)
            for general, page_size in itertools.product((False, True), (None, 16)):
                both = general and page_size is not None
                dims = XMX_HEAD_DIMS if both and kernel == "xmx_emulated" else [(64, 64)]
                plans = [
                    small_plan(dtype, *of, "ValidOnlyPersistent", page_size=page_size)
                    for of in dims
                ]
                if both and dtype == "bfloat16":
                    plans += [
                        small_plan(dtype, 64, 64, policy, page_size=page_size)
                        for policy in exactile.SCHEDULERS
                    ]
                compile_ahead(plans, general=general)
        yield


@pytest.fixture
def kernel(request, monkeypatch) -> str:
    monkeypatch.setenv("EXACTILE_SYCL_KERNEL", request.param)
    return request.param


by_both = pytest.mark.parametrize("kernel", KERNELS, indirect=True)
by_each = pytest.mark.parametrize(("kernel", "dtype"), EACH, indirect=["kernel"])


def there(batch: Batch) -> Batch:
    """A batch on the device, what it is served with too."""
    arrays = ("block_table", "sinks", "alibi_slopes")
    given = {name: put(x) if name in arrays else x for name, x in batch.serving.items()}
    k, v = (put_view(x) for x in (batch.k, batch.v))
    return replace(batch, q=put(batch.q), k=k, v=v, serving=given)


def serve(batch: Batch, **options) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) of the device; rows of out that do not count are as they were."""
    out = put(np.full((*batch.q.shape[:2], batch.v.shape[-1]), SENTINEL, batch.q.dtype))
    _, lse = there(batch).run(dtype=batch.q.dtype.name, out=out, **options)
    result = get(out, batch.q.dtype)
    untouched = np.ones(len(result), bool)
    untouched[tokens(*lengths(batch)[:2])] = False
    assert (result[untouched] == SENTINEL).all(), "a row that does not count was written"
    return result, dpnp.asnumpy(lse)


def assert_same_results(got, want):
    for x, y in zip(got, want, strict=True):
        assert_same_bits(x, y)


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "feature"),
    [("portable", name) for name in KIND_OF]
    + [("xmx_emulated", name) for name in KIND_OF if name not in UNALIGNED],
    indirect=["kernel"],
)
def test_each_feature(feature, kernel):
    batch = make_batch(LENS_Q, LENS_K, heads=(6, 2), dtype="bfloat16")
    batch = with_features(batch, [feature], seed=1)
    batch.check(*serve(batch))


@by_both
@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_each_pair_of_kinds(pair, kernel):
    batch = with_features(make_batch(LENS_Q, LENS_K, dtype="bfloat16"), pair)
    batch.check(*serve(batch))


@by_each
def test_all_at_once(kernel, dtype):
    """Policies, packing of heads and the number of work-groups change no bit."""
    batch = with_features(make_batch(LENS_Q, LENS_K, dtype=dtype), [*ALL, PAGES])
    results = serve(batch)
    batch.check(*results)
    if dtype != "bfloat16":
        return
    for scheduler, pack_gqa, workers in itertools.product(
        exactile.SCHEDULERS, (False, True), (1, 3)
    ):
        again = serve(batch, scheduler=scheduler, pack_gqa=pack_gqa, workers=workers)
        assert_same_results(counted(batch, again), counted(batch, results))


@pytest.mark.parametrize("kernel", ["xmx_emulated"], indirect=True)
@pytest.mark.parametrize(("head_dim", "head_dim_v"), XMX_HEAD_DIMS[1:])
def test_all_at_once_for_each_other_head_dim(kernel, head_dim, head_dim_v):
    batch = make_batch(LENS_Q, LENS_K, dtype="bfloat16", head_dim=head_dim, head_dim_v=head_dim_v)
    batch = with_features(batch, [*ALL, PAGES])
    batch.check(*serve(batch))


# --- scores ---------------------------------------------------------------------------------------


@by_each
@pytest.mark.parametrize("softcap", [0.7, 30.0, 1e4])
def test_softcap_of_large_scores(kernel, dtype, softcap):
    batch = make_batch([130, 7], dtype=dtype, causal=True)
    batch.q[:] *= batch.q.dtype.type(12)
    batch = with_scores(batch, softcap=softcap)
    batch.check(*serve(batch))


@by_each
def test_alibi_over_many_keys(kernel, dtype):
    """Biases of thousands, and more keys than the XMX kernel sums up at a time."""
    for mask in {}, {"window": (900, 40)}:
        batch = make_batch([70, 5], [2300, 900], heads=(4, 1), dtype=dtype, **mask)
        batch = with_scores(batch, slopes=[8.0, 0.5, 2.0**-8, 0.0])
        batch.check(*serve(batch))


@by_each
def test_rows_that_see_no_key_have_their_sink(kernel, dtype):
    batch = make_batch([6, 3], [2, 0], dtype=dtype, causal=True)
    sinks = np.array([0.5, -np.inf, -30.0, 200.0], np.float32)
    out, lse = serve(with_scores(batch, sinks=sinks))
    for rows in slice(4), slice(6, 9):
        assert (out[rows] == 0).all()
        np.testing.assert_array_equal(
            lse[:, rows], np.broadcast_to(sinks[:, None], lse[:, rows].shape)
        )
    assert np.isfinite(lse[[0, 2, 3], 4:6]).all()


# --- pages ----------------------------------------------------------------------------------------


@by_each
@pytest.mark.parametrize("mask", [*MASKS.values()][:3], ids=[*MASKS][:3])
def test_pages_change_no_bit(mask, kernel, dtype):
    batch = make_batch([5, 0, 130, 64, 1], [700, 4, 70, 257, 128], dtype=dtype, **mask)
    want = serve(batch)
    for page_size, layout, poison in (
        (16, "side by side", np.nan),
        (48, "one behind the other", np.inf),
        (64, "heads first", np.nan),
        (256, "dense", np.nan),
    ):
        paged = in_pages(batch, page_size, layout, keep_cu_k=page_size == 64, poison=poison)
        assert_same_results(serve(paged), want)


@by_both
def test_pages_of_several_sequences_and_long_ones(kernel):
    """A prefix that sequences share lies in the same pages."""
    keys = [4096 + 20, 4096 + 50]
    batch = make_batch([9, 33], keys, heads=(2, 1), dtype="bfloat16", causal=True)
    batch.k[keys[0] : keys[0] + 4096] = batch.k[:4096]
    batch.v[keys[0] : keys[0] + 4096] = batch.v[:4096]
    paged = in_pages(batch, 64)
    paged.serving["block_table"][1, :64] = paged.serving["block_table"][0, :64]
    results = serve(paged)
    batch.check(*results)
    assert_same_results(results, serve(batch))


@by_both
@pytest.mark.parametrize("number", [-1, 2**31 - 1, -(2**31), 1 << 20])
def test_numbers_of_no_page_lead_to_the_cache(number, kernel):
    """To a page of it: of another sequence, whose own results stay."""
    batch = make_batch([40, 7], [100, 90], dtype="bfloat16")
    paged = in_pages(batch, 16, poison=0.0)
    want, wrong = serve(paged), replace(paged, serving=dict(paged.serving))
    table = wrong.serving["block_table"].copy()
    table[0, 1] = number
    wrong.serving["block_table"] = table
    out, lse = serve(wrong)
    assert_same_results((out[40:], lse[:, 40:]), (want[0][40:], want[1][:, 40:]))
    assert np.isfinite(out.astype(np.float32)).all()
    assert np.isfinite(lse).all()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["xmx_emulated"], indirect=True)
def test_pages_that_2d_messages_do_not_reach(kernel):
    batch = make_batch([5], [40], dtype="bfloat16")
    for page_size in 1, 24:
        with pytest.raises(
            ValueError, match=rf"in pages of {page_size} keys, but of multiples of 16"
        ):
            serve(in_pages(batch, page_size))
    for layout in "gaps", "reversed":
        with pytest.raises(ValueError, match=r"expected pages, tokens and heads of k on 64-byte "):
            serve(in_pages(batch, 16, layout))


def test_a_device_takes_other_pages_with_the_portable_kernel(monkeypatch):
    monkeypatch.delenv("EXACTILE_SYCL_KERNEL", raising=False)
    for page_size, kernel in ((0, "xmx_xe2"), (16, "xmx_xe2"), (48, "xmx_xe2"), (24, "portable")):
        assert _sycl._choose_kernel({"xmx": "xe2"}, "bfloat16", 64, 64, page_size) == kernel
    assert _core.sycl_shape("xmx_xe2", "bfloat16", 64, 64, 24) is None


@by_both
@pytest.mark.parametrize("name", ["block_table", "sinks", "alibi_slopes"])
def test_arrays_elsewhere(name, kernel):
    import dpctl

    batch = with_scores(
        make_batch([5, 3], [40, 7], dtype="bfloat16"), sinks=some_sinks(4), slopes=some_slopes(2, 4)
    )
    batch = in_pages(batch, 16)
    device = there(batch)
    device.serving[name] = batch.serving[name]
    with pytest.raises(ValueError, match=f"expected {name} on the device of q, oneAPI"):
        device.run(dtype="bfloat16")
    queue = device.q.sycl_queue
    other = dpctl.SyclQueue(dpctl.SyclContext([queue.sycl_device]), queue.sycl_device)
    device.serving[name] = put(batch.serving[name], other)
    with pytest.raises(ValueError, match=f"expected {name} in memory of the queue's context, got"):
        device.run(dtype="bfloat16")
