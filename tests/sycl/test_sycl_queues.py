"""Queues and memory: dpnp in and out on the user's queue, in order or not; other libraries."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import exactile
from cases import TESTS, assert_same_bits, make_batch
from exactile import _device, _sycl, planning
from sycl_device import dpnp, get, needs_device, on_device, plan_of, put

pytestmark = needs_device


@pytest.fixture(params=["in_order", "out_of_order"])
def queue(request):
    import dpctl

    return dpctl.SyclQueue(**({"property": "in_order"} if request.param == "in_order" else {}))


@pytest.fixture(scope="module")
def batch():
    return make_batch([700, 3, 0, 150], head_dim=64, causal=True)


def test_dpnp_in_dpnp_out_on_the_queue_of_q(batch, queue):
    device = on_device(batch, queue)
    out, lse = device.run()
    for result in (out, lse):
        assert type(result) is dpnp.ndarray
        assert result.sycl_queue == queue
    assert out.dtype == device.q.dtype
    batch.check(get(out, batch.q.dtype), dpnp.asnumpy(lse))


def test_on_another_queue_of_the_context(batch, queue):
    import dpctl

    device = on_device(batch, queue)
    queue.wait()
    other = dpctl.SyclQueue(queue.sycl_context, queue.sycl_device, property="in_order")
    out, lse = device.run(stream=other)
    assert out.sycl_queue == other
    batch.check(get(out, batch.q.dtype), dpnp.asnumpy(lse))


def test_a_context_that_is_not_the_default_one(batch):
    import dpctl

    device = dpctl.SyclQueue().sycl_device
    queue = dpctl.SyclQueue(dpctl.SyclContext([device]), device)
    out, lse = on_device(batch, queue).run()
    assert out.sycl_queue == queue
    batch.check(get(out, batch.q.dtype), dpnp.asnumpy(lse))


def test_usm_arrays_without_dpnp_around_them(batch):
    device = on_device(batch)
    arrays = [x.get_array() for x in (device.q, device.k, device.v)]
    out = plan_of(batch).run(*arrays)
    assert type(out) is type(arrays[0])
    want, _ = device.run()
    assert_same_bits(get(dpnp.asarray(out), batch.q.dtype), get(want, batch.q.dtype))


class Foreign:
    """An array that says no more of itself than DLPack and the array API ask for."""

    def __init__(self, x):
        self.x = x

    dtype = property(lambda self: self.x.dtype)
    shape = property(lambda self: self.x.shape)

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()

    def __array_namespace__(self):
        class Namespace:
            @staticmethod
            def from_dlpack(y):
                return Foreign(dpnp.from_dlpack(y))

        return Namespace


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_known_by_dlpack_alone(dtype):
    batch = make_batch([70, 0, 9], dtype=dtype)
    device = on_device(batch)
    device.q.sycl_queue.wait()
    plan = plan_of(batch)
    q, k, v = (Foreign(x) for x in (device.q, device.k, device.v))
    out, lse = plan.run(q, k, v, return_lse=True)
    assert type(out) is type(lse) is Foreign
    batch.check(get(out.x, batch.q.dtype), dpnp.asnumpy(lse.x))
    into = put(np.zeros_like(batch.q))
    into.sycl_queue.wait()
    assert plan.run(q, k, v, out=Foreign(into)).x is into
    plan.run(q, k, v, out=into, stream=into.sycl_queue)
    assert_same_bits(get(into, batch.q.dtype), get(out.x, batch.q.dtype))


def test_order_with_the_work_around_it(batch, queue):
    """Without a wait of the host: inputs are made just before, results used just after."""
    plan = plan_of(batch)
    device = on_device(batch, queue)
    want = get(plan.run(device.q, device.k, device.v), batch.q.dtype)
    big = dpnp.ones((1 << 21,), dtype="float32", sycl_queue=queue)
    for _ in range(10):
        for _ in range(3):
            big = dpnp.sqrt(big + 1.0)  # keeps the queue busy
        q = device.q * 2.0 - device.q
        k, v = device.k + 0.0, device.v * 1.0
        out = plan.run(q, k, v)
        doubled = out * 2.0
        v[...] = np.nan
        q[...] = np.nan
        assert_same_bits(get(doubled, batch.q.dtype), 2 * want)


def test_one_plan_in_turns_on_several_queues(batch):
    """Each has a counter of its own; a run starts before the last one on another queue ends."""
    import dpctl

    queues = [dpctl.SyclQueue(property="in_order"), dpctl.SyclQueue(), dpctl.SyclQueue()]
    plan = plan_of(batch, scheduler="ValidOnlyPersistent")
    devices = [on_device(batch, queue) for queue in queues]
    for queue in queues:
        queue.wait()
    outs = [plan.run(d.q, d.k, d.v) for _ in range(8) for d in devices]
    want = get(devices[0].run(scheduler="Individual")[0], batch.q.dtype)
    for out in outs:
        assert_same_bits(get(out, batch.q.dtype), want)


def test_one_plan_in_several_threads_on_one_queue(batch, queue):
    plan = plan_of(batch, scheduler="ValidOnlyPersistent")
    device = on_device(batch, queue)
    want = get(plan.run(device.q, device.k, device.v), batch.q.dtype)
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda _: plan.run(device.q, device.k, device.v), range(200)))
    for out in outs:
        assert_same_bits(get(out, batch.q.dtype), want)


def test_inputs_and_plan_may_go_before_the_kernel_ends(batch, queue):
    want = get(on_device(batch, queue).run()[0], batch.q.dtype)
    outs = []
    for _ in range(20):
        device = on_device(batch, queue)
        outs.append(plan_of(batch).run(device.q, device.k, device.v))
        del device
        gc.collect()
    for out in outs:
        assert_same_bits(get(out, batch.q.dtype), want)


class Counting:
    """Something of C++, and the names of its functions that were looked up."""

    def __init__(self, inner, called):
        self._inner, self._called = inner, called

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        if callable(value):
            self._called.append(name)
        return value


def test_a_run_that_repeats_crosses_into_cpp_twice(batch, queue, monkeypatch):
    """Beside the question after torch's compiler, which is every backend's."""
    plan = plan_of(batch)
    device = on_device(batch, queue)
    out = plan.run(device.q, device.k, device.v)
    called = []
    for module in (planning, _sycl, _device):
        monkeypatch.setattr(module, "_core", Counting(module._core, called))
    runtime = _sycl._runtime
    monkeypatch.setattr(_sycl, "_runtime", runtime._replace(sycl=Counting(runtime.sycl, called)))
    monkeypatch.setitem(plan.__dict__, "_core", Counting(plan._core, called))
    plan.run(device.q, device.k, device.v, out=out)
    assert called == ["suspend_compiler", "sycl_check_process", "run"]


def test_a_kernel_is_asked_for_once(monkeypatch):
    """By what it is, whatever plan has it."""
    batch = make_batch([30, 5])
    device = on_device(batch)
    asked, load = [], _sycl.load_kernel
    monkeypatch.setattr(_sycl, "load_kernel", lambda *a: asked.append(a[-1][-1]) or load(*a))
    source = (
        "#include <exactile/scheduler/valid_only.hpp>\n"
        "struct Twin : exactile::ValidOnlyIndividual {\n"
        "  using ValidOnlyIndividual::ValidOnlyIndividual;\n};\n"
    )
    for text in (source, source, source + "// another"):
        own = exactile.Scheduler("Twin", source=text)
        for _ in range(2):
            plan = plan_of(batch, scheduler=own)
            for _ in range(2):
                plan.run(device.q, device.k, device.v)
    assert len(asked) == 2
    assert all("Twin" in name for name in asked)


def test_arrays_are_let_go():
    """What a run keeps alive, it gives back."""
    batch = make_batch([30])
    device = on_device(batch)
    plan = plan_of(batch)
    before = sys.getrefcount(device.q)
    for _ in range(5):
        out = plan.run(device.q, device.k, device.v)
    out.sycl_queue.wait()
    deadline = time.monotonic() + 30
    while (after := sys.getrefcount(device.q)) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert after == before


def test_exit_with_work_in_flight():
    code = (
        "import exactile, dpnp\n"
        "q = dpnp.ones((2000, 4, 64), dtype='float32')\n"
        "for _ in range(10): out = exactile.varlen_prefill(q, q, q, [0, 2000])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_bench_and_info(capsys):
    from exactile.tools import cli

    arguments = ["--seqlens=300,0,20", "--num_heads_q=4", "--num_heads_kv=2", "--iterations=1"]
    assert cli.main(["bench", "--backend=sycl", "--compare", "--dtype=float16", *arguments]) == 0
    text = capsys.readouterr().out
    assert "exactile" in text
    assert "sycl" in text
    for scheduler in exactile.SCHEDULERS:
        assert scheduler in text
    assert cli.main(["info"]) == 0
    assert "portable kernel" in capsys.readouterr().out
    info = exactile.info()["backends"]["sycl"]
    assert info["available"]
    assert info["devices"][0]["kernel"] == "portable"


FORK = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from cases import make_batch
from sycl_device import exactile, on_device, run
batch = make_batch([5, 70])
if sys.argv[2] == "after a run":
    batch.check(*run(batch))
else:
    exactile.info()
child = os.fork()
if child == 0:
    print("in the child", flush=True)
    if sys.argv[3] == "runs":
        batch.check(*run(batch))
    sys.exit(3)
for _ in range(600):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    sys.exit("the child hangs")
print("exit code", os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(
    ("when", "what", "code"),
    [
        ("after a run", "exits", 3),
        ("after a run", "runs", 1),
        ("before a run", "exits", 3),
        ("before a run", "runs", 3),
    ],
)
def test_fork(when, what, code):
    """A child ends; it runs kernels where its parent had not yet."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(TESTS), when, what],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["in the child", f"exit code {code}"]
    if code == 1:
        assert "RuntimeError: exactile: sycl: this process was forked" in done.stderr
