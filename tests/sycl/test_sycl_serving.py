"""Serving attention on SYCL: each feature and pairs of them against float64, both kernels."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

import exactile
from cases import LENS_K, LENS_Q, assert_same_bits, make_batch
from exactile import _core, _sycl
from serving import (
    FEATURES,
    SENTINEL,
    counted,
    in_pages,
    lengths,
    some_sinks,
    tokens,
    with_features,
    with_padding,
    with_room,
    with_scores,
)
from sycl_device import dpnp, get, needs_device, on_device, put

pytestmark = needs_device

KERNELS = ["portable", "xmx_emulated"]


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    monkeypatch.setenv("EXACTILE_SYCL_KERNEL", request.param)
    return request.param


ARRAYS = "block_table", "sinks", "alibi_slopes"


def serve(batch, **options):
    on = on_device(batch)
    given = {n: put(x) if n in ARRAYS else x for n, x in batch.serving.items()}
    out = put(np.full((*batch.q.shape[:2], batch.v.shape[-1]), SENTINEL, batch.q.dtype))
    _, lse = replace(on, serving=given).run(dtype=batch.q.dtype.name, out=out, **options)
    out = get(out, batch.q.dtype)
    untouched = np.ones(len(out), bool)
    untouched[tokens(*lengths(batch)[:2])] = False
    assert (out[untouched] == SENTINEL).all(), "a row that does not count was written"
    return out, dpnp.asnumpy(lse)


KIND_OF = {name: kind for kind, names in FEATURES.items() for name in names}


@pytest.mark.parametrize("feature", [f for f in KIND_OF if not any(x in f for x in ("gaps", "reversed"))])
def test_each_feature(feature, kernel):
    batch = make_batch(LENS_Q, LENS_K, heads=(6, 2), dtype="bfloat16")
    batch = with_features(batch, [feature], seed=1)
    batch.check(*serve(batch))
