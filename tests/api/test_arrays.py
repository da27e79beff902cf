"""Arrays of other libraries, and callers that are not alone: threads, forks."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest

import exactile
from abilities import require
from cases import DTYPES, assert_same_bits, make_batch


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_in_torch_out(dtype):
    require("torch")
    import torch

    batch = make_batch([70, 5, 0, 129], dtype=dtype, causal=True)
    want, want_lse = batch.run()

    def tensor(x):
        bits = torch.from_numpy(x.view(np.uint16) if dtype == "bfloat16" else x)
        return bits.view(getattr(torch, dtype))

    arguments = [tensor(x) for x in (batch.q, batch.k, batch.v)]
    for cu in (torch.from_numpy(batch.cu_q), batch.cu_q.tolist()):
        out, lse = exactile.varlen_prefill(*arguments, cu, causal=True, return_lse=True)
        assert isinstance(out, torch.Tensor)
        assert out.dtype == arguments[0].dtype
        assert lse.dtype == torch.float32
        assert torch.equal(out, tensor(want))
        assert torch.equal(lse, torch.from_numpy(want_lse))
    given = torch.empty_like(out)
    assert exactile.varlen_prefill(*arguments, cu, causal=True, out=given) is given
    assert torch.equal(given, out)


class ForeignArray:
    """As little as an array of the standard has: DLPack, and a namespace to come back through."""

    def __init__(self, values):
        self.values = values
        self.dtype, self.shape = values.dtype, values.shape

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()

    def __array_namespace__(self):
        return ForeignArray

    @staticmethod
    def from_dlpack(x):
        return ForeignArray(np.from_dlpack(x))


def test_any_array_with_dlpack():
    batch = make_batch([20, 3])
    want, want_lse = batch.run()
    q, k, v = (ForeignArray(x) for x in (batch.q, batch.k, batch.v))
    out, lse = exactile.varlen_prefill(q, k, v, ForeignArray(batch.cu_q), return_lse=True)
    assert isinstance(out, ForeignArray)
    assert isinstance(lse, ForeignArray)
    assert_same_bits(out.values, want)
    assert_same_bits(lse.values, want_lse)


class Raising(ForeignArray):
    """One that cannot be exported now."""

    def __init__(self, values, error):
        super().__init__(values)
        self.error = error

    def __dlpack__(self, **options):
        raise self.error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, BufferError, ValueError])
def test_exceptions_of_an_array_pass_through(kind):
    error = kind("busy")
    q = np.zeros((3, 1, 64), np.float32)
    plan = exactile.plan([0, 3], num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float32")
    for arrays in (Raising(q, error), q, q), (q, q, Raising(q, error)):
        with pytest.raises(kind, match="busy") as raised:
            plan.run(*arrays, out=np.empty_like(q))
        assert raised.value is error
        with pytest.raises(kind, match="busy"):
            exactile.varlen_prefill(*arrays, [0, 3])


def test_libraries_from_before_dlpack_1():
    class Old(ForeignArray):
        def __dlpack__(self):
            return self.values.__dlpack__()

    batch = make_batch([20, 3])
    q, k, v = (Old(x) for x in (batch.q, batch.k, batch.v))
    out = Old(np.zeros_like(batch.q))
    assert exactile.varlen_prefill(q, k, v, batch.cu_q, out=out) is out
    assert_same_bits(out.values, batch.run()[0])


def test_what_dlpack_says_is_read_only():
    batch = make_batch([20])
    out = np.zeros_like(batch.q)
    out.flags.writeable = False
    q = ForeignArray(batch.q)
    with pytest.raises(ValueError, match="out to be writable, got a read-only array"):
        exactile.varlen_prefill(q, batch.k, batch.v, batch.cu_q, out=ForeignArray(out))
    assert (out == 0).all()
    batch.k.flags.writeable = False
    exactile.varlen_prefill(q, ForeignArray(batch.k), batch.v, batch.cu_q)


def test_what_is_no_capsule():
    class Odd(ForeignArray):
        def __dlpack__(self, **options):
            return 3

    q = np.zeros((3, 1, 64), np.float32)
    with pytest.raises(TypeError, match="k to give a DLPack capsule of version 0 or 1, got int"):
        exactile.varlen_prefill(q, Odd(q), q, [0, 3])


def test_jax():
    require("jax")
    import jax

    jax.config.update("jax_default_device", jax.devices("cpu")[0])
    batch = make_batch([20, 3])
    want = batch.run()[0]
    q, k, v = (jax.numpy.asarray(x) for x in (batch.q, batch.k, batch.v))
    out = exactile.varlen_prefill(q, k, v, batch.cu_q)
    assert isinstance(out, jax.Array)
    assert_same_bits(np.asarray(out), want)
    before = np.array(q)
    with pytest.raises(ValueError, match="out to be writable, got an array of JAX"):
        exactile.varlen_prefill(q, k, v, batch.cu_q, out=q)
    assert_same_bits(np.asarray(q), before)
    for transform in jax.jit, jax.vmap, lambda f: jax.grad(lambda q: f(q).sum()):
        with pytest.raises(TypeError, match=r"q to be .* an array with __dlpack__, got \w+Tracer"):
            transform(lambda q: exactile.varlen_prefill(q, k, v, batch.cu_q))(q)
    dtype = jax.numpy.bfloat16
    shape = dict(num_heads_q=1, num_heads_kv=1, head_dim=64)
    assert exactile.plan([0, 3], **shape, dtype=dtype).dtype == "bfloat16"
    assert exactile.plan(jax.numpy.array([0, 3]), **shape, dtype=dtype).batch == 1


def test_uint16_is_the_storage_of_a_bfloat16_plan():
    batch = make_batch([20], dtype="bfloat16")
    plan = exactile.plan(batch.cu_q, num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bfloat16")
    out = plan.run(*(x.view(np.uint16) for x in (batch.q, batch.k, batch.v)))
    assert out.dtype == np.uint16
    assert_same_bits(out.view(batch.q.dtype), batch.run()[0])


def test_callers_on_several_threads():
    batch = make_batch([300, 40, 77], dtype="bfloat16")
    plan = exactile.plan(
        batch.cu_q, num_heads_q=4, num_heads_kv=2, head_dim=64, dtype="bfloat16", workers=2
    )
    want = plan.run(batch.q, batch.k, batch.v)
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.extend(plan.run(batch.q, batch.k, batch.v) for _ in range(10))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    for got in results:
        assert_same_bits(got, want)


def _run_in_child(queue):
    queue.put(make_batch([200, 30]).run(workers=2)[0])


def test_a_forked_child_gets_threads_of_its_own():
    want = make_batch([200, 30]).run(workers=2)[0]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_run_in_child, args=(queue,))
    child.start()
    got = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert_same_bits(got, want)


def test_set_num_threads():
    before = exactile.get_num_threads()
    try:
        exactile.set_num_threads(3)
        plan = exactile.plan([0, 999], num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float32")
        assert plan.workers == plan.launched == 3
    finally:
        exactile.set_num_threads(None)
    assert exactile.get_num_threads() == before


def test_info():
    info = exactile.info()
    cpu = info["backends"]["cpu"]
    assert cpu["available"]
    assert cpu["isa"] == cpu["isas"][0] or cpu["isa"] in cpu["isas"]
    for backend in info["backends"].values():
        assert backend["available"] == (backend["reason"] is None)
    assert info["version"] == exactile.__version__
