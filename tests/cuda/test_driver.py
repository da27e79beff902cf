"""Our declarations of the CUDA driver (src/cuda/driver.hpp) are those of CUDA's headers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from abilities import cuda_headers, needs, require

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "src/cuda/driver.hpp"


def errors(*include: Path) -> str:
    require("g++")
    folders = [f"-I{path}" for path in (*include, ROOT / "src", ROOT / "include")]
    command = ["g++", "-std=c++20", "-Wall", "-Wextra", "-fsyntax-only", *folders]
    command += ["-isystem", str(cuda_headers()), str(ROOT / "tests/cpp/static_driver.cpp")]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@needs("cuda headers")
def test_they_are():
    assert errors() == ""


@needs("cuda headers")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("kAttributeMultiprocessorCount = 16", "kAttributeMultiprocessorCount = 17"),
        ("kTensorMapSwizzle64B = 2", "kTensorMapSwizzle64B = 1"),
        ("unsigned shared_bytes;", "std::size_t shared_bytes;"),
        ("unsigned char value[64]", "unsigned char value[56]"),
        ("X(cuMemAlloc, 3020,", "X(cuMemAlloc, 2000,"),
        ("X(cuEventRecord, 2000, (Event, Stream))", "X(cuEventRecord, 2000, (Event))"),
        ("(Stream, unsigned long long*)", "(Stream, unsigned*)"),
        (
            "(DevicePtr, const void*, std::size_t, Stream)",
            "(DevicePtr, void*, std::size_t, Stream)",
        ),
    ],
)
def test_others_do_not_compile(right, wrong, tmp_path):
    text = DRIVER.read_text()
    assert text.count(right) == 1
    copy = tmp_path / "cuda" / "driver.hpp"
    copy.parent.mkdir()
    copy.write_text(text.replace(right, wrong))
    assert "error:" in errors(tmp_path)
