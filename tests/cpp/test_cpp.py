"""The C++ tests: configured, built and run by ctest, without the Python package."""

from __future__ import annotations

from pathlib import Path

from abilities import needs
from builds import configure, run
from cases import ROOT


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
