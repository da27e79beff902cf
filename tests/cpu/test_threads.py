"""Threads of the CPU backend: who shares them, forks, signals, memory that runs out."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

START = """
import os, resource, signal, sys, threading, time
import numpy as np
import exactile

def inputs(tokens, heads=4, head_dim=64, seed=0):
    shape = (tokens, heads, head_dim)
    return [np.random.default_rng(seed + i).standard_normal(shape, np.float32) for i in range(3)]

def plan(tokens, workers=2, heads=4, head_dim=64):
    return exactile.plan([0, tokens], num_heads_q=heads, num_heads_kv=heads, head_dim=head_dim,
                         dtype="float32", workers=workers)

q, k, v = inputs(600)
small = plan(600)
want = plan(600, workers=1).run(q, k, v)

def check_small():
    assert np.array_equal(small.run(q, k, v), want)

def virtual_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def limit_memory(more_bytes):
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = hard if more_bytes is None else virtual_bytes() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

def wait_for(child, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    sys.exit("the child hangs")
"""


def run_python(code: str, timeout_s: float = 300, **environment: str) -> str:
    """Output of `code`, after START, in a process of its own, which has to succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", START + textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"returned {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_forked_child_exits():
    run_python("""
        check_small()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        assert wait_for(child) == 0
        check_small()
    """)


def test_forked_child_runs():
    run_python("""
        check_small()
        child = os.fork()
        if child == 0:
            check_small()
            grandchild = os.fork()
            check_small()
            sys.exit(wait_for(grandchild) if grandchild else 0)
        check_small()
        assert wait_for(child) == 0
    """)


def test_fork_while_another_thread_runs():
    run_python("""
        stop = threading.Event()
        def keep_running():
            while not stop.is_set():
                check_small()
        other = threading.Thread(target=keep_running)
        other.start()
        for i in range(400):
            child = os.fork()
            if child == 0:
                check_small()
                os._exit(0)
            assert wait_for(child) == 0
        stop.set()
        other.join()
    """)


def test_interrupt():
    """A run of minutes ends at once, and those that come after it are right."""
    run_python(
        """
        # Where the parent ignores Ctrl-C, as a shell's background jobs do, Python installs none.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        q8, k8, v8 = inputs(200_000)
        for workers in (1, 3):
            long = plan(200_000, workers)
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
            begin = time.monotonic()
            try:
                long.run(q8, k8, v8)
            except KeyboardInterrupt:
                pass
            else:
                sys.exit("the run was not interrupted")
            assert time.monotonic() - begin < 10
            check_small()
        """
    )


def test_signal_handler_that_runs_attention():
    """It runs on the thread whose run it interrupts, between two of its tiles."""
    run_python("""
        q8, k8, v8 = inputs(8192)
        long = plan(8192)
        want8 = long.run(q8, k8, v8)
        calls = []
        def handler(number, frame):
            check_small()
            calls.append(number)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        for _ in range(100):
            assert np.array_equal(long.run(q8, k8, v8), want8)
            if calls:
                break
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert calls
    """)


def test_short_runs_do_not_wait_for_a_long_one():
    run_python("""
        q8, k8, v8 = inputs(16384)
        long = plan(16384)
        check_small()
        began, ended = threading.Event(), threading.Event()
        def run_long():
            began.set()
            long.run(q8, k8, v8)
            ended.set()
        other = threading.Thread(target=run_long)
        other.start()
        began.wait()
        time.sleep(0.05)
        for _ in range(10):
            check_small()
        assert not ended.is_set()
        other.join()
    """)


def test_runs_of_many_threads():
    run_python("""
        def some_runs():
            for _ in range(50):
                check_small()
        others = [threading.Thread(target=some_runs) for _ in range(6)]
        for other in others: other.start()
        for other in others: other.join()
    """)


def test_threads_that_cannot_be_started():
    run_python("""
        wide = plan(600, workers=20)
        out = np.zeros_like(q)
        limit_memory(30 << 20)  # stacks are of 8 MiB
        try:
            wide.run(q, k, v, out=out)
        except RuntimeError as error:
            assert "expected to start 19 threads" in str(error), error
        else:
            sys.exit("RLIMIT_AS did not hold")
        assert not out.any()
        limit_memory(None)
        assert np.array_equal(wide.run(q, k, v), want)
    """)


def test_memory_that_runs_out():
    run_python("""
        q8, k8, v8 = inputs(600, head_dim=256)
        wide = plan(600, head_dim=256)
        out, want8 = np.empty_like(q8), None
        check_small()
        limit_memory(0)
        filling, size = [], 1 << 24
        while size >= 1 << 12:
            try:
                filling.append(bytearray(size))
            except MemoryError:
                size //= 2
        refused = 0
        for _ in range(5):
            try:
                wide.run(q8, k8, v8, out=out)
            except MemoryError:
                refused += 1
        try:
            wide.run(q8, k8, v8)
        except MemoryError:
            refused += 1
        del filling
        limit_memory(None)
        print(refused)
        assert refused > 0
        check_small()
        assert np.array_equal(wide.run(q8, k8, v8), plan(600, 1, head_dim=256).run(q8, k8, v8))
    """)


def test_planning_leaves_no_large_memory_in_the_thread():
    """Four million records are sorted in 80 MiB."""
    run_python("""
        def resident_bytes():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()
        def plan_ones(sequences):
            cu_seqlens = np.arange(sequences + 1, dtype=np.int32)
            exactile.plan(cu_seqlens, num_heads_q=1, num_heads_kv=1, head_dim=64, dtype="float32",
                          scheduler="ValidOnlyIndividual", order="longest_first")
        plan_ones(1000)
        before = resident_bytes()
        plan_ones(4_000_000)
        left_mib = (resident_bytes() - before) >> 20
        assert left_mib < 40, left_mib
    """)


def test_interpreter_ends_before_the_run_of_a_daemon_thread():
    run_python("""
        class Late:
            def __init__(self):
                self.sleep = time.sleep
            def __del__(self):  # when the interpreter has ended, the process not yet
                self.sleep(0.5)
        late = Late()
        def run_for_ever():
            while True:
                check_small()
        threading.Thread(target=run_for_ever, daemon=True).start()
        time.sleep(0.2)
    """)


def test_no_more_threads_than_tiles():
    run_python("""
        wide = plan(600, workers=100_000)
        assert np.array_equal(wide.run(q, k, v), want)
        assert len(os.listdir("/proc/self/task")) <= wide.valid + 8
    """)
