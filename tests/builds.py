"""Commands and CMake projects that tests run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from abilities import PATH, require


def run(*command: str | Path) -> str:
    """Output of a command; the test fails with its whole log when it does not succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        line = " ".join(map(str, command))
        pytest.fail(f"{line} returned {done.returncode}\n{done.stdout}", pytrace=False)
    return done.stdout


def configure(source: Path, build: Path, *options: str) -> None:
    """Configure a CMake project, or skip where the tools for it are missing."""
    require("cmake")
    require("ninja")
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *options)
