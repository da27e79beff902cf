"""How runs are timed: what a GPU is told to do, in which order, and one figure of a slice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from exactile.tools.machines import Gpu, Host


@pytest.fixture
def gpu() -> Gpu:
    """A GPU that writes down what it is told; a run takes 2 ms."""
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("event")

        def elapsed_time(self, end: Event) -> float:
            return 2.0

    cuda = SimpleNamespace(
        Event=Event,
        _sleep=lambda cycles: told.append(f"sleep {cycles}"),
        synchronize=lambda: told.append("wait"),
    )
    machine = Gpu.__new__(Gpu)
    machine.torch = SimpleNamespace(cuda=cuda)
    machine.cold = SimpleNamespace(zero_=lambda: told.append("cold"))
    machine.l2_bytes = 50
    machine.told = told
    return machine


@pytest.mark.parametrize(("working_set", "is_cold"), [(99, True), (100, False), (None, False)])
def test_the_host_is_ahead_of_runs_that_follow_at_once(gpu, working_set, is_cold):
    times = gpu.milliseconds(lambda: gpu.told.append("run"), working_set, count=3)
    assert times == [2.0] * 3
    each = ["cold"] * is_cold + ["event", "run", "event"]
    assert gpu.told == ["sleep 600000", *each * 3, "wait"]


@pytest.mark.parametrize(("seconds", "runs"), [(0.001, 5), (0.1, 50), (10, 200)])
def test_a_slice_of_time_on_a_gpu(gpu, seconds, runs):
    """The median of as many runs as fill it, after one that says how many."""
    assert gpu.slice_ms(lambda: gpu.told.append("run"), None, seconds) == 2.0
    assert gpu.told.count("run") == 1 + runs
    assert gpu.told.count("wait") == 2


def test_a_slice_of_time_on_a_host():
    runs = []
    shortest = Host().slice_ms(lambda: runs.append(None), None, 0.01)
    assert runs
    assert shortest > 0
