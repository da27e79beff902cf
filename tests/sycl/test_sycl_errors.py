"""Bad input on the sycl backend: errors that say what is missing and how to get it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import exactile
from cases import make_batch
from exactile import _core, _sycl
from sycl_device import dpnp, needs_device, on_device, plan_of, run


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_exactile_loads_no_sycl_runtime():
    done = python(
        "import sys, exactile\n"
        "exactile.plan([0, 5], num_heads_q=1, num_heads_kv=1, head_dim=64, dtype='float32')\n"
        "assert 'dpctl' not in sys.modules\n"
        "assert 'exactile_sycl._sycl' not in sys.modules\n"
        "assert 'libsycl' not in open('/proc/self/maps').read()\n"
    )
    assert done.returncode == 0, done.stderr


def test_no_runtime():
    """As where the extra is not installed."""
    done = python(
        "import sys\n"
        "sys.modules['exactile_sycl'] = None\n"
        "import importlib.util as u\n"
        "find_spec = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'exactile_sycl' else find_spec(name)\n"
        "import exactile\n"
        "sycl = exactile.info()['backends']['sycl']\n"
        "assert not sycl['available']\n"
        "print(sycl['reason'])\n"
        "plan = exactile.plan([0, 5], num_heads_q=1, num_heads_kv=1, head_dim=64,\n"
        "                     dtype='float32', backend='sycl')\n"
        "print(plan)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "needs the SYCL runtime, which is not installed" in done.stdout
    assert "pip install 'exactile[sycl]'" in done.stdout
    assert "sycl>" in done.stdout


def test_host_arrays():
    batch = make_batch([5])
    with pytest.raises(ValueError, match=r"in SYCL memory .* got them on CPU; dpnp.asarray"):
        batch.run(backend="sycl")


@needs_device
def test_no_device():
    done = python(
        "import exactile\n"
        "print(exactile.info()['backends']['sycl'])\n"
        "exactile._sycl.default_queue()\n",
        ONEAPI_DEVICE_SELECTOR="cuda:*",
    )
    assert "'available': False" in done.stdout
    assert "RuntimeError: exactile: the SYCL runtime finds no device" in done.stderr
    assert "exactile[sycl-cpu]" in done.stderr


@needs_device
@pytest.mark.parametrize(
    ("dtype", "lacks", "message"),
    [
        ("float16", {"fp16": False}, "lacks the aspect fp16, which float16 needs; use float32"),
        ("float32", {"usm": False}, "lacks USM device allocations"),
        ("float32", {"sub_group_sizes": [32]}, r"sub-groups of 16 work-items \(has \[32\]\)"),
        ("float32", {"max_work_group_size": 64}, r"work-groups of 256 work-items \(has 64\)"),
        ("bfloat16", {"local_bytes": 16384}, r"bytes of local memory \(has 16384\)"),
        ("bfloat16", {"compiles": False}, r"is not in the cache, .* cannot compile for"),
    ],
)
def test_a_device_that_lacks_something(dtype, lacks, message, monkeypatch, tmp_path):
    batch = make_batch([5], dtype=dtype)
    device = on_device(batch)
    info = _sycl.device_info(device.q.sycl_queue)
    monkeypatch.setitem(_sycl._devices, device.q.sycl_queue.sycl_device, info | lacks)
    # A kernel that is nowhere yet: asked for and never loaded.
    source = "#include <exactile/scheduler/valid_only.hpp>\nstruct Nowhere "
    source += ": exactile::ValidOnlyIndividual {};\n"
    own = exactile.Scheduler("Nowhere", source=source)
    with pytest.raises(RuntimeError, match=message):
        device.run(dtype=dtype, scheduler=own)


@needs_device
@pytest.mark.parametrize(
    ("version", "got"), [(999, "got one with 999"), (None, "got one with none")]
)
def test_a_runtime_of_another_version(version, got):
    """Two distributions that do not fit; what is loaded stays."""
    table, number = None, ctypes.c_uint32(version or 0)
    if version is not None:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
        table = new(ctypes.addressof(number), b"exactile_sycl.table", None)
    with pytest.raises(RuntimeError, match=rf"an exactile-sycl with interface \d+, {got}"):
        _core.sycl_use_runtime(table)
    batch = make_batch([5])
    batch.check(*run(batch))


@needs_device
def test_bfloat16_needs_no_aspect(monkeypatch):
    batch = make_batch([5], dtype="bfloat16")
    device = on_device(batch)
    info = _sycl.device_info(device.q.sycl_queue)
    monkeypatch.setitem(_sycl._devices, device.q.sycl_queue.sycl_device, info | {"fp16": False})
    batch.check(*run(batch))


@needs_device
def test_a_queue_of_another_context():
    import dpctl

    device = on_device(make_batch([5]))
    sycl_device = device.q.sycl_queue.sycl_device
    other = dpctl.SyclQueue(dpctl.SyclContext([sycl_device]), sycl_device)
    with pytest.raises(ValueError, match="expected q in memory of the queue's context, got"):
        device.run(stream=other)
    there = on_device(make_batch([5]), other)
    with pytest.raises(ValueError, match="expected k in memory of the queue's context, got"):
        plan_of(make_batch([5])).run(device.q, there.k, device.v)


@needs_device
@pytest.mark.parametrize("stream", [7, "queue", object()])
def test_a_stream_that_is_no_queue(stream):
    with pytest.raises(TypeError, match=r"stream to be a dpctl.SyclQueue on the sycl backend, got"):
        on_device(make_batch([5])).run(stream=stream)


@needs_device
def test_arrays_that_do_not_fit():
    batch = make_batch([5])
    device = on_device(batch)
    plan = plan_of(batch)
    with pytest.raises(ValueError, match="expected k on the device of q"):
        plan.run(device.q, batch.k, device.v)
    with pytest.raises(ValueError, match="expected v of dtype float32, got float16"):
        plan.run(device.q, device.k, device.v.astype("float16"))
    with pytest.raises(ValueError, match=r"expected out of shape \(5, 4, 64\), got \(5, 4, 32\)"):
        plan.run(device.q, device.k, device.v, out=dpnp.zeros((5, 4, 32), dtype="float32"))
    with pytest.raises(ValueError, match="last dimension of q to be contiguous"):
        plan.run(dpnp.zeros((5, 4, 128), dtype="float32")[:, :, ::2], device.k, device.v)
    with pytest.raises(ValueError, match="expected q of dtype float32, float16 or bfloat16, got"):
        plan.run(device.q.astype("float64"), device.k, device.v)
    with pytest.raises(ValueError, match=r"got uint16 \(with dtype=.bfloat16. it is its storage"):
        on_device(make_batch([5], dtype="bfloat16")).run()
    with pytest.raises(
        ValueError, match="arrays in CPU memory for the cpu backend, got them on oneAPI"
    ):
        device.run(backend="cpu")


def test_unknown_kernel(monkeypatch):
    monkeypatch.setenv("EXACTILE_SYCL_KERNEL", "warp")
    with pytest.raises(ValueError, match="EXACTILE_SYCL_KERNEL: expected one of portable"):
        plan_of(make_batch([5]))


def test_shapes_of_kernels():
    assert _core.sycl_shape("portable", "float32", 80, 80) is None
    assert np.prod(_core.sycl_shape("portable", "bfloat16", 128, 128)[:2]) == 128 * 32


def test_why_there_is_no_device():
    info = exactile.info()["backends"]["sycl"]
    assert info["available"] or "pip install" in info["reason"]


def test_plans_need_no_device(monkeypatch):
    monkeypatch.setattr(_sycl, "_installed", False)
    plan = plan_of(make_batch([300], dtype="bfloat16"))
    assert (plan.block_m, plan.block_n) == _core.sycl_shape("portable", "bfloat16", 64, 64)[:2]
    assert plan.workers == 128
