"""The compilers that the headers are made for: the oldest of them, and what older ones say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import exactile
from abilities import find_program, require
from builds import configure, run
from cases import ROOT, TESTS

OLDEST = ["g++-11", "clang++-15"]
HEADERS = [
    path.relative_to(exactile.include_dir()).as_posix()
    for folder in ("", "scheduler")
    for path in sorted(Path(exactile.include_dir(), "exactile", folder).glob("*.hpp"))
]


def found(name: str) -> str:
    """Path of a compiler, or the test is skipped."""
    require(name)
    return find_program(name)


@pytest.mark.parametrize("compiler", ["g++", "clang++", *OLDEST, "nvcc"])
def test_cpp17_gets_a_plain_sentence_first(tmp_path, compiler):
    for header in HEADERS:
        source = tmp_path / ("user.cu" if compiler == "nvcc" else "user.cpp")
        source.write_text(f"#include <{header}>\n")
        command = [found(compiler), "-std=c++17", "-c", f"-I{exactile.include_dir()}", str(source)]
        done = subprocess.run(
            [*command, "-o", os.devnull], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        first = re.search(r"error:.*", done.stderr)
        assert first is not None, done.stderr
        assert "exactile: expected C++20 (-std=c++20; g++ 11" in first[0]


@pytest.mark.parametrize("compiler", OLDEST)
def test_a_project_of_its_own(tmp_path, compiler):
    configure(
        ROOT / "examples/grouped_gemm",
        tmp_path,
        f"-Dexactile_DIR={exactile.cmake_dir()}",
        f"-DCMAKE_CXX_COMPILER={found(compiler)}",
        "-DCMAKE_CXX_FLAGS=-Werror",
        "-DCMAKE_CUDA_COMPILER=",
    )
    run("cmake", "--build", tmp_path)
    assert run(tmp_path / "grouped_gemm").count("exact\n") == 4


@pytest.mark.parametrize("compiler", OLDEST)
def test_the_policies(tmp_path, compiler):
    """Once at compile time, where undefined behaviour is an error, and over all small shapes."""
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{exactile.include_dir()}"]
    cpp = TESTS / "cpp"
    for name in ("static_concepts", "static_schedulers"):
        freestanding = ["-nostdinc", "-ffreestanding", "-fsyntax-only", cpp / f"{name}.cpp"]
        run(found(compiler), *flags, *freestanding)
    program = tmp_path / "test_schedulers"
    run(found(compiler), *flags, cpp / "test_schedulers.cpp", "-o", program)
    run(program)


OLDEST_NVRTC = """
import ctypes, sys
for file in sys.argv[1:]:
    ctypes.CDLL(file, ctypes.RTLD_GLOBAL)
from exactile import _core
print(_core.nvrtc_info()[1])
serving = "PagedKv", "GeneralScores"
for family, architecture in (("sm80", "sm_80"), ("sm90", "sm_90a")):
    for scheduler in _core.SCHEDULERS:
        kernel = family, "bfloat16", 128, 128, True, scheduler, "NoProbe"
        print(_core.find_cubin(*_core.kernel_program(*kernel), architecture)[0])
    print(_core.find_cubin(*_core.kernel_program(*kernel, *serving), architecture)[0])
    for kernel in "merge_kernel<exactile::Bf16>", "append_kernel<float, exactile::Fp16>":
        source = f"#include <exactile/cuda/{kernel.split('_')[0]}.hpp>\\n"
        print(_core.find_cubin(source, f"exactile::cuda::{kernel}", architecture)[0])
"""


def test_the_oldest_nvrtc(tmp_path):
    """pip install --target=DIR 'nvidia-cuda-nvrtc-cu12==12.4.*'; EXACTILE_OLDEST_NVRTC=DIR."""
    require("oldest nvrtc")
    folder = os.environ["EXACTILE_OLDEST_NVRTC"]
    builtins = sorted(map(str, Path(folder).rglob("libnvrtc-builtins.so*")))
    library = sorted(map(str, Path(folder).rglob("libnvrtc.so*")))
    done = subprocess.run(
        [sys.executable, "-c", OLDEST_NVRTC, *builtins, *library],
        env=os.environ | {"EXACTILE_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, *origins = done.stdout.split()
    assert version == "12.4"
    assert set(origins) <= {"compiler", "wheel"}
