"""The C++ tests: configured, built and run by ctest, without the Python package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from abilities import PATH, needs, require

ROOT = Path(__file__).parents[1]


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


def test_cpp(tmp_path: Path) -> None:
    configure(ROOT, tmp_path, "-DEXACTILE_BUILD_TESTS=ON")
    run("cmake", "--build", tmp_path, "--target", "cpp_tests")
    print(run("ctest", "--test-dir", tmp_path, "--verbose", "--no-tests=error"))


@needs("nvcc")
def test_nvcc_takes_the_headers(tmp_path: Path) -> None:
    """That ctest did not skip it, as it does where CMake finds no nvcc."""
    configure(ROOT, tmp_path, "-DEXACTILE_BUILD_TESTS=ON")
    log = run("ctest", "--test-dir", tmp_path, "-R", "device_mode", "--no-tests=error")
    assert "Passed" in log
