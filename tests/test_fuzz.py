"""A few of the random cases of fuzz.py, on every instruction set that runs here, and on a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from abilities import ISAS, needs

PROGRAM = Path(__file__).with_name("fuzz.py")


def fuzz(*options: str) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--cases=200", "--processes=1", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 cases, 0 wrong" in done.stdout


@pytest.mark.parametrize("isa", [pytest.param(isa, marks=needs(isa)) for isa in ISAS])
def test_cpu(isa):
    fuzz("--backend=cpu", f"--isa={isa}")


@needs("cuda")
def test_cuda():
    fuzz("--backend=cuda")
