"""What pytest itself takes for all tests: fixtures, and the lines at the end of a run."""

from __future__ import annotations

import pytest

import exactile
from abilities import require, summary


def pytest_terminal_summary(terminalreporter) -> None:
    """At the end of a run, what was not tested here, and what it takes."""
    lines = summary(terminalreporter.stats.get("skipped", []))
    if lines:
        terminalreporter.section("not tested here")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(params=["sm80", "sm90"])
def family(request, monkeypatch) -> str:
    """Each kind of CUDA kernels, where a GPU can run it."""
    require("cuda")
    if request.param == "sm90":
        require("hopper")
    monkeypatch.setenv("EXACTILE_CUDA_FAMILY", request.param)
    return request.param


@pytest.fixture(params=exactile.SCHEDULERS)
def scheduler(request) -> str:
    return request.param
