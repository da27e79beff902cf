"""Serving attention on SYCL, by both kernels: features and pairs of them against float64, pages and
policies bit by bit, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

import exactile
from cases import LENS_K, LENS_Q, MASKS, Batch, make_batch
from exactile import _core, _sycl
from serving import (
    ALL,
    KIND_OF,
    NO_PAGES,
    ON_HOST,
    PAGES,
    SENTINEL,
    assert_same_results,
    check_alibi_over_many_keys,
    check_large_scores_with_softcap,
    check_number_of_no_page,
    check_rows_without_keys_have_their_sink,
    check_shared_prefix,
    check_untouched,
    counted,
    in_pages,
    pairs_of_kinds,
    some_sinks,
    some_slopes,
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
    check_untouched(batch, result)
    return result, dpnp.asnumpy(lse)


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "feature"),
    [("portable", name) for name in KIND_OF]
    + [("xmx_emulated", name) for name in KIND_OF if name not in ON_HOST],
    indirect=["kernel"],
)
def test_each_feature(feature, kernel):
    batch = make_batch(LENS_Q, LENS_K, heads=(6, 2), dtype="bfloat16")
    batch = with_features(batch, [feature], seed=1)
    batch.check(*serve(batch))


@by_both
@pytest.mark.parametrize("pair", pairs_of_kinds(ON_HOST), ids=" and ".join)
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
    check_large_scores_with_softcap(serve, dtype, softcap)


@by_each
def test_alibi_over_many_keys(kernel, dtype):
    check_alibi_over_many_keys(serve, dtype)


@by_each
def test_rows_that_see_no_key_have_their_sink(kernel, dtype):
    check_rows_without_keys_have_their_sink(serve, dtype)


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
    check_shared_prefix(serve)


@by_both
@pytest.mark.parametrize("number", NO_PAGES)
def test_numbers_of_no_page_lead_to_the_cache(number, kernel):
    """To a page of it: of another sequence, whose own results stay."""
    check_number_of_no_page(serve, number)


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
