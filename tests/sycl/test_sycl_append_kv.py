"""`exactile.append_kv` on a SYCL device."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import exactile
from append_cases import (
    PAGE_SIZE,
    PAGES,
    SEQUENCES,
    SLOTS_OF_SEQUENCES,
    caches,
    expected,
    new_rows,
    some_slots,
)
from cases import DTYPES, assert_same_bits
from sycl_device import dpnp, get, needs_device, put

pytestmark = needs_device


@pytest.mark.parametrize(("dtype", "cache_dtype"), list(itertools.product(DTYPES, DTYPES)))
@pytest.mark.parametrize("slots_on", ["host", "int32", "int64"])
def test_every_pair_of_dtypes(dtype, cache_dtype, slots_on):
    """Slots in device memory that the cache does not have are not written."""
    rows, host = new_rows(20, dtype), caches(cache_dtype)
    slots = some_slots(slots_on == "host").astype("int64" if slots_on == "host" else slots_on)
    want = [expected(c, x, slots) for c, x in zip(host, rows, strict=True)]
    to = [put(x) for x in host]
    storage = "bfloat16" if "bfloat16" in (dtype, cache_dtype) else None
    given = slots if slots_on == "host" else dpnp.asarray(slots)
    exactile.append_kv(*(put(x) for x in rows), *to, slot_mapping=given, dtype=storage)
    for got, wanted in zip(to, want, strict=True):
        assert_same_bits(get(got, wanted.dtype), wanted)


@pytest.mark.parametrize("in_order", [True, False])
def test_pages_of_sequences_and_strides(in_order):
    """On the queue of the cache, heads outside of rows, slots made on the host."""
    import dpctl

    queue = dpctl.SyclQueue(**({"property": "in_order"} if in_order else {}))
    rows = new_rows(5, "float32")
    want = [
        expected(c, x, SLOTS_OF_SEQUENCES) for c, x in zip(caches("float32"), rows, strict=True)
    ]
    to = [
        put(np.ascontiguousarray(x.transpose(0, 2, 1, 3)), queue).transpose(0, 2, 1, 3)
        for x in caches("float32")
    ]
    exactile.append_kv(
        *(put(x, queue) for x in rows),
        *to,
        **SEQUENCES,
    )
    for got, wanted in zip(to, want, strict=True):
        assert_same_bits(dpnp.asnumpy(got), wanted)


def test_no_token():
    to = [put(x) for x in caches("float32")]
    exactile.append_kv(*(put(x) for x in new_rows(0, "float32")), *to,
                       slot_mapping=np.zeros(0, int))  # fmt: skip
    assert (dpnp.asnumpy(to[0]) == 7).all()


def test_bad_input():
    host = new_rows(3, "float32"), caches("float32")
    rows, to = ([put(x) for x in arrays] for arrays in host)
    slots = np.array([1, 2, PAGES * PAGE_SIZE])
    with pytest.raises(ValueError, match=r"append_kv: expected slot_mapping below 35, .* got 35"):
        exactile.append_kv(*rows, *to, slot_mapping=slots)
    with pytest.raises(ValueError, match=r"append_kv: expected k_cache on the device of k_new"):
        exactile.append_kv(*rows, *host[1], slot_mapping=slots)
    with pytest.raises(ValueError, match=r"append_kv: expected slot_mapping in CPU memory or on"):
        exactile.append_kv(*host[0], *host[1], slot_mapping=dpnp.asarray(slots))
    with pytest.raises(ValueError, match=r"expected k_new of dtype .*, got uint16 \(with dtype="):
        exactile.append_kv(rows[0].astype("uint16"), rows[1], *to, slot_mapping=slots)
    with pytest.raises(TypeError, match=r"append_kv: expected stream to be a dpctl.SyclQueue"):
        exactile.append_kv(*rows, *to, slot_mapping=slots, stream=7)
    with pytest.raises(TypeError, match=r"append_kv: expected block_table in CPU memory, got"):
        exactile.append_kv(*rows, *to, block_table=dpnp.zeros((1, 1), dtype="int32"),
                           cu_seqlens=[0, 3], seqused_k=[3])  # fmt: skip
    assert (dpnp.asnumpy(to[0]) == 7).all()
