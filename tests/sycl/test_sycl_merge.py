"""`exactile.merge` on a SYCL device."""

from __future__ import annotations

import numpy as np
import pytest

import exactile
from cases import DTYPES, assert_same_bits, make_batch
from merge_cases import (
    SHAPES,
    check_a_sum_that_is_no_number,
    check_against_float64,
    draw_parts,
)
from sycl_device import dpnp, get, needs_device, on_device, put

pytestmark = needs_device


@pytest.fixture(params=["in_order", "out_of_order"])
def queue(request):
    import dpctl

    return dpctl.SyclQueue(**({"property": "in_order"} if request.param == "in_order" else {}))


def merge(outs, lses, **options):
    """(out, lse) of host arrays, merged on the device."""
    dtype = outs[0].dtype
    out, lse = exactile.merge(
        [put(x) for x in outs],
        [put(x) for x in lses],
        dtype=dtype.name,
        return_lse=True,
        **options,
    )
    return get(out, dtype), dpnp.asnumpy(lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_parts", [1, 2, 4, 5, 9])
def test_against_float64(dtype, shape, num_parts):
    """More than 4 parts are told to the kernel in device memory."""
    check_against_float64(merge, shape, num_parts, dtype)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_sum_that_is_no_number_makes_its_row_nan(value):
    check_a_sum_that_is_no_number(merge, value)


def test_on_the_queue_of_the_first_result_and_on_another(queue):
    """Behind the attention that it merges, without a wait between."""
    import dpctl

    batch = make_batch([300, 7], [100, 50])
    device = on_device(batch, queue)
    parts = [
        exactile.varlen_prefill(
            device.q, device.k[keys], device.v[keys], batch.cu_q, cu_k, return_lse=True
        )
        for keys, cu_k in ((slice(100), [0, 100, 100]), (slice(100, 150), [0, 0, 50]))
    ]
    outs, lses = zip(*parts, strict=True)
    out, lse = exactile.merge(list(outs), list(lses), return_lse=True)
    assert type(out) is dpnp.ndarray
    assert out.sycl_queue == lse.sycl_queue == queue
    batch.check(dpnp.asnumpy(out), dpnp.asnumpy(lse))
    want = dpnp.asnumpy(out)
    queue.wait()
    other = dpctl.SyclQueue(queue.sycl_context, queue.sycl_device, property="in_order")
    again = exactile.merge(*parts[0], *parts[1], stream=other)
    assert again.sycl_queue == other
    assert_same_bits(dpnp.asnumpy(again), want)


def test_in_place_and_strided():
    outs, lses = draw_parts((40, 3, 64), 2, "float32")
    want, _ = merge(outs, lses)
    wide = dpnp.asarray(np.concatenate([outs[0]] * 2, axis=1))
    first = wide[:, 3:]
    out = exactile.merge(first, put(lses[0].T.copy()).T, put(outs[1]), put(lses[1]), out=first)
    assert out is first
    assert_same_bits(dpnp.asnumpy(out), want)
    assert_same_bits(dpnp.asnumpy(wide[:, :3]), outs[0])


@pytest.mark.parametrize("shape", [(0, 4, 64), (5, 0, 64)])
def test_nothing_to_do(shape):
    out, lse = merge(*draw_parts(shape, 2, "float32"))
    assert out.shape == shape
    assert lse.shape == (shape[1], shape[0])


def test_bad_input():
    outs, lses = draw_parts((6, 2, 64), 2, "float32")
    on = [put(x) for x in outs], [put(x) for x in lses]
    with pytest.raises(ValueError, match=r"merge: expected out_b on the device of out_a, oneAPI 0"):
        exactile.merge(on[0][0], on[1][0], outs[1], on[1][1])
    with pytest.raises(ValueError, match=r"merge: expected lse_b on the device of out_a, oneAPI 0"):
        exactile.merge(on[0][0], on[1][0], on[0][1], lses[1])
    with pytest.raises(ValueError, match=r"merge: expected out on the device of out_a"):
        exactile.merge(*on, out=np.zeros_like(outs[0]))
    with pytest.raises(ValueError, match=r"merge: expected out_a.* of dtype .*, got uint16"):
        exactile.merge([x.astype("uint16") for x in on[0]], on[1])
    with pytest.raises(TypeError, match=r"merge: expected stream to be a dpctl.SyclQueue .* int"):
        exactile.merge(*on, stream=3)


def test_another_context():
    import dpctl

    outs, lses = draw_parts((6, 2, 64), 2, "float32")
    device = dpctl.SyclQueue().sycl_device
    other = dpctl.SyclQueue(dpctl.SyclContext([device]), device)
    with pytest.raises(ValueError, match=r"merge: expected lse_b in memory of the queue's context"):
        exactile.merge(put(outs[0]), put(lses[0]), put(outs[1]), put(lses[1], other))
