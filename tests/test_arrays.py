"""Arrays of other libraries, and callers that are not alone: threads, forks."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest

import exactile
from conftest import DTYPES, assert_same_bits, make_batch


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_in_torch_out(dtype):
    torch = pytest.importorskip("torch")
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


def test_torch_on_another_device():
    torch = pytest.importorskip("torch")
    q = torch.empty(4, 2, 64, device="meta")
    with pytest.raises((ValueError, TypeError, BufferError, NotImplementedError)):
        exactile.varlen_prefill(q, q, q, [0, 4])


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
