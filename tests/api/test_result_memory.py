"""Memory of results: kept for the next one, within its bound, never for two at a time."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import exactile
from abilities import require
from exactile import _core
from exactile._arrays import LARGE_BYTES, aligned_empty

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    exactile.empty_result_cache()
    assert _core.kept_result_bytes() == 0
    yield
    gc.collect()
    exactile.empty_result_cache()


def address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import exactile; from exactile import _core\n" + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_freed_memory_serves_the_next_result():
    first = aligned_empty((10, MIB), np.uint8)
    where = address(first)
    assert where % 4096 == 0
    second = aligned_empty((10, MIB), np.uint8)
    assert address(second) != where
    del first
    assert _core.kept_result_bytes() == 10 * MIB
    third = aligned_empty((9, MIB), np.uint8)
    assert address(third) == where
    assert _core.kept_result_bytes() == 0
    del third
    huge = aligned_empty((30, MIB), np.uint8)  # does not fit
    small = aligned_empty((4, MIB), np.uint8)  # would waste more than half
    assert where not in (address(huge), address(small))
    assert _core.kept_result_bytes() == 10 * MIB


def test_a_view_keeps_the_memory():
    result = aligned_empty((10, MIB), np.uint8)
    result[:] = 7
    view = result[3:5, ::2]
    del result
    assert _core.kept_result_bytes() == 0
    other = aligned_empty((10, MIB), np.uint8)
    other[:] = 9
    assert (view == 7).all()


def test_small_results_are_not_kept():
    result = aligned_empty((LARGE_BYTES - 1,), np.uint8)
    assert address(result) % 64 == 0
    del result
    assert _core.kept_result_bytes() == 0


def test_no_more_is_kept_than_the_bound():
    results = [aligned_empty((50, MIB), np.uint8) for _ in range(8)]
    results.append(aligned_empty((300, MIB), np.uint8))
    del results
    assert 0 < _core.kept_result_bytes() <= 256 * MIB
    results = [aligned_empty((4, MIB), np.uint8) for _ in range(40)]
    del results
    assert 0 < _core.kept_result_bytes() <= 256 * MIB
    exactile.empty_result_cache()
    assert _core.kept_result_bytes() == 0


def test_threads_never_share_a_block():
    wrong = []

    def use(name: int) -> None:
        for i in range(200):
            result = aligned_empty((4 + i % 5, MIB), np.uint8)
            result[:, :8] = name
            if not (result[:, :8] == name).all():
                wrong.append(name)

    threads = [threading.Thread(target=use, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_results(dtype):
    require("torch")
    import torch

    q = torch.randn(9000, 8, 128).to(getattr(torch, dtype))
    want = exactile.varlen_prefill(q, q, q, [0, 9000], window=(3, 0), out=torch.empty_like(q))
    for default in ("meta", "cpu"):
        torch.set_default_device(default)
        try:
            out, lse = exactile.varlen_prefill(q, q, q, [0, 9000], window=(3, 0), return_lse=True)
        finally:
            torch.set_default_device(None)
        assert out.device.type == lse.device.type == "cpu"
        assert out.dtype == q.dtype
        assert lse.dtype == torch.float32
        assert torch.equal(out, want)
        where = out.data_ptr()
        del out
        assert exactile.varlen_prefill(q, q, q, [0, 9000], window=(3, 0)).data_ptr() == where


def test_environment_variable():
    code = "_core.result_memory(10 << 20); print(_core.kept_result_bytes() >> 20)"
    assert run_python(code, EXACTILE_RESULT_CACHE_MIB="").stdout.strip() == "10"
    assert run_python(code, EXACTILE_RESULT_CACHE_MIB="10").stdout.strip() == "10"
    assert run_python(code, EXACTILE_RESULT_CACHE_MIB="9").stdout.strip() == "0"
    assert run_python(code, EXACTILE_RESULT_CACHE_MIB="0").stdout.strip() == "0"
    for wrong in ("-1", "many", "1.5", "1e3", "99999999999"):
        done = run_python(code, EXACTILE_RESULT_CACHE_MIB=wrong)
        assert "EXACTILE_RESULT_CACHE_MIB: expected a whole number of MiB from 0 to" in done.stderr
        assert f"got '{wrong}'" in done.stderr


def test_kept_memory_is_given_up_where_there_is_no_other():
    done = run_python("""
import resource
kept = [_core.result_memory(60 << 20) for _ in range(4)]
del kept
assert _core.kept_result_bytes() == 240 << 20
with open("/proc/self/statm") as file:
    in_use = int(file.read().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (in_use + (10 << 20), hard))
result = _core.result_memory(200 << 20)
try:
    _core.result_memory(1 << 40)
except MemoryError:
    print("refused")
""")
    assert done.stdout.strip() == "refused", done.stderr


def test_forked_child():
    done = run_python("""
import os, threading
stop = threading.Event()
def keep_allocating():
    while not stop.is_set():
        _core.result_memory(5 << 20)
other = threading.Thread(target=keep_allocating)
other.start()
for i in range(200):
    child = os.fork()
    if child == 0:
        for _ in range(3):
            _core.result_memory(5 << 20)[:] = 1
        exactile.empty_result_cache()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
other.join()
""")
    assert done.returncode == 0, done.stderr
