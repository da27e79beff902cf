"""The C++ tests: configured, built and run by ctest, without the Python package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The tools of the test extra, also where the environment is not activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


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
    for tool in ("cmake", "ninja"):
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"{tool} is not installed: pip install exactile[test]")
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *options)


def test_cpp(tmp_path: Path) -> None:
    configure(ROOT, tmp_path, "-DEXACTILE_BUILD_TESTS=ON")
    run("cmake", "--build", tmp_path, "--target", "cpp_tests")
    print(run("ctest", "--test-dir", tmp_path, "--verbose", "--no-tests=error"))
