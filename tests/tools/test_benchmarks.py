"""The benchmarks' programs run; what they measure is not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cases import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_before_after_asks_an_installation(dtype):
    """A process of one installation, which answers with a rate."""
    case = dict(backend="cpu", lens=[40, 7], head_dim=64, dtype=dtype, causal=True)
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "before_after.py"), "--worker"],
        input="".join(json.dumps(request) + "\n" for request in (case, 0.01)),
        capture_output=True,
        text=True,
        check=True,
    )
    where, ready, tflops = map(json.loads, done.stdout.splitlines())
    assert Path(where).name == "exactile"
    assert ready is None
    assert tflops > 0


def test_cpu_serving():
    """Every side is verified before it is timed."""
    options = "--works=decode", "--batch=3", "--keys=300", "--rounds=1", "--seconds=0.01"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "cpu_serving.py"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[1:3] for line in done.stdout.splitlines()[2:]] == [
        ["decode", "float32"],
        ["decode", "bfloat16"],
    ]
