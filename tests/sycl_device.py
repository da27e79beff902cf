"""Shared by the SYCL tests: batches on the device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

import exactile
from abilities import module, needs
from cases import Batch, place_in_whole
from exactile import _core, _sycl

dpnp = module("dpnp")
needs_device = needs("sycl")

ROWS = [row[1:] for row in _core.support() if row[0] == "sycl"]


def put(x: np.ndarray, queue: Any = None) -> Any:
    """A dpnp array; bfloat16 as uint16 storage."""
    x = x.view(np.uint16) if x.dtype == ml_dtypes.bfloat16 else x
    return dpnp.asarray(x, sycl_queue=queue)


def put_view(x: np.ndarray) -> Any:
    """`x` where it lies in the array that it is a view of, which `put` makes dense."""
    whole, steps, at = place_in_whole(x)
    on = put(whole)
    return dpnp.tensor.usm_ndarray(
        x.shape,
        dtype=on.dtype,
        buffer=on.get_array().usm_data,
        strides=steps,
        offset=at,
    )


def get(x: Any, dtype: Any) -> np.ndarray:
    """A numpy array of `dtype`; waits for the array's queue."""
    host = dpnp.asnumpy(x)
    return host.view(ml_dtypes.bfloat16) if dtype == ml_dtypes.bfloat16 else host


def on_device(batch: Batch, queue: Any = None) -> Batch:
    return replace(batch, **{name: put(getattr(batch, name), queue) for name in "qkv"})


def run(batch: Batch, queue: Any = None, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(out, lse) of a host batch, computed on the device."""
    out, lse = on_device(batch, queue).run(dtype=batch.q.dtype.name, **options)
    return get(out, batch.q.dtype), dpnp.asnumpy(lse)


def small_plan(
    dtype: str, head_dim: int, head_dim_v: int, scheduler: str, page_size: int | None = None
) -> exactile.Plan:
    """A plan of the least work, for `compile_ahead`."""
    return exactile.plan(
        [0, 1],
        seqused_k=None if page_size is None else [1],
        page_size=page_size,
        num_heads_q=1,
        num_heads_kv=1,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        dtype=dtype,
        scheduler=scheduler,
        backend="sycl",
    )


def compile_ahead(plans: list[exactile.Plan], *, general: bool = False) -> None:
    """Compile what is not in the cache yet, two at a time. `general`: with general scores."""
    queue = _sycl.default_queue()
    programs = {_core.sycl_kernel(plan._core, general)[-2:] for plan in plans}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda program: _sycl.find_spirv(queue, *program), programs))


def plan_of(batch, **options):
    return exactile.plan(
        batch.cu_q,
        batch.cu_k,
        num_heads_q=batch.q.shape[1],
        num_heads_kv=batch.k.shape[1],
        head_dim=batch.q.shape[2],
        head_dim_v=batch.v.shape[2],
        dtype=batch.q.dtype.name,
        causal=batch.causal,
        window=batch.window,
        backend="sycl",
        **options,
    )
