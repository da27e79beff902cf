"""EXACTILE_JIT_DUMP and EXACTILE_JIT_LINEINFO. Needs NVRTC for CUDA kernels, and no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from abilities import needs
from exactile import _core

needs_nvrtc = needs("nvrtc")

KERNEL = _core.kernel_program("sm80", "float16", 64, 64, False, "Individual", probe="Timeline")
NAME = "cuda_sm80_prefill_kernel"

FIND = """
import json, sys, warnings
from exactile import _core
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    origin, key, _, image = _core.find_cubin(*json.loads(sys.argv[1]), "sm_80")
print(json.dumps([origin, key, image.hex(), [str(x.message) for x in caught]]))
"""


def find(tmp_path, program=KERNEL, check=True, **environment):
    """(origin, key, image, warnings) of a cubin, in a process of its own; or its stderr."""
    environment = {"EXACTILE_JIT_DUMP": str(tmp_path / "dump")} | environment
    done = subprocess.run(
        [sys.executable, "-c", FIND, json.dumps(program)],
        env=os.environ | {"EXACTILE_CACHE_DIR": str(tmp_path / "cache")} | environment,
        capture_output=True,
        text=True,
        check=check,
    )
    if not check:
        return done.stderr
    origin, key, image, warnings = json.loads(done.stdout)
    return origin, key, bytes.fromhex(image), warnings


def disassembler(tmp_path, body):
    """A PATH whose nvdisasm is a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "nvdisasm"
    tool.write_text(f"#!/bin/sh\n{body}\n")
    tool.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@needs_nvrtc
def test_source_ptx_cubin_and_sass(tmp_path):
    path = disassembler(tmp_path, 'echo "disassembled $*"')
    origin, key, image, warnings = find(tmp_path, PATH=path)
    assert (origin, warnings) == ("compiler", [])
    files = {file.suffix: file for file in (tmp_path / "dump").iterdir()}
    assert set(files) == {".cu", ".ptx", ".cubin", ".sass"}
    (stem,) = {file.stem for file in files.values()}
    assert stem == (
        f"{NAME}_cuda_sm80_Traits_Fp16_64_64_cuda_MaskKind_kFull_Individual_cuda_Timeline"
        f".sm_80.{key[:8]}"
    )
    source = files[".cu"].read_text()
    assert source.startswith(KERNEL[0])
    for line in (KERNEL[1], "sm_80", "-std=c++20"):
        assert line in source
    ptx = files[".ptx"].read_text()
    assert ".target sm_80" in ptx
    assert ".loc" not in ptx
    assert "prefill_kernel" in ptx
    assert files[".cubin"].read_bytes() == image
    assert files[".sass"].read_text() == f"disassembled -c {files['.cubin']}\n"


@needs_nvrtc
def test_only_what_is_compiled(tmp_path):
    find(tmp_path, EXACTILE_JIT_DUMP="")
    assert not (tmp_path / "dump").exists()
    assert find(tmp_path)[0] == "cache directory"
    assert not (tmp_path / "dump").exists()


@needs_nvrtc
def test_no_disassembler(tmp_path):
    """The cubin is there, and a warning says what is missing."""
    nothing = {"PATH": "", "CUDA_HOME": "", "CUDA_PATH": ""}
    *_, warnings = find(tmp_path, **nothing)
    suffixes = {file.suffix for file in (tmp_path / "dump").iterdir()}
    if ".sass" in suffixes:  # found where toolkits are installed
        assert warnings == []
        return
    assert suffixes == {".cu", ".ptx", ".cubin"}
    (warning,) = warnings
    assert "no SASS beside" in warning
    assert "nvdisasm was not found" in warning


@needs_nvrtc
def test_a_disassembler_that_fails(tmp_path):
    path = disassembler(tmp_path, "echo out of order; exit 3")
    *_, (warning,) = find(tmp_path, PATH=path)
    (sass,) = (tmp_path / "dump").glob("*.sass")
    assert sass.read_text() == "out of order\n"
    assert "nvdisasm failed" in warning
    assert str(sass) in warning


@needs_nvrtc
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    folder = str(tmp_path / "file" / "dump")
    error = find(tmp_path, check=False, EXACTILE_JIT_DUMP=folder)
    assert (
        f"ValueError: EXACTILE_JIT_DUMP: expected a folder that can be written to, got '{folder}'"
        in error
    )
    assert find(tmp_path)[0] == "compiler"  # nor was it kept


@needs_nvrtc
def test_line_information_has_a_key_of_its_own(tmp_path):
    path = disassembler(tmp_path, 'echo "disassembled $*"')
    without, line_info = ({"EXACTILE_JIT_LINEINFO": value, "PATH": path} for value in ("0", "1"))
    first = find(tmp_path, **without)
    second = find(tmp_path, **line_info)
    assert (first[0], second[0]) == ("compiler", "compiler")
    assert first[1] != second[1]
    assert b"debug_line" not in first[2]
    assert b"debug_line" in second[2]
    assert find(tmp_path, **without)[:2] == ("cache directory", first[1])
    assert find(tmp_path, **line_info)[:2] == ("cache directory", second[1])
    dumped = {
        suffix: next((tmp_path / "dump").glob(f"*.{second[1][:8]}.{suffix}")).read_text()
        for suffix in ("ptx", "sass", "cu")
    }
    assert "exactile/cuda/sm80/kernel.hpp" in dumped["ptx"]
    assert dumped["sass"].startswith("disassembled -c -g ")
    assert dumped["cu"].rstrip().endswith("-lineinfo")


@needs_nvrtc
def test_line_information_is_0_or_1(tmp_path):
    error = find(tmp_path, check=False, EXACTILE_JIT_LINEINFO="yes")
    assert "ValueError: EXACTILE_JIT_LINEINFO: expected 0 or 1, got 'yes'" in error


@needs_nvrtc
def test_the_name_of_a_long_own_policy(tmp_path):
    name = "Mine_" + "x" * 400
    source = f"namespace own {{ template <int k> __global__ void {name}(int* x) {{ *x = k; }} }}\n"
    _, key, _, _ = find(tmp_path, (source, f"own::{name}<3>"))
    (cubin,) = (tmp_path / "dump").glob("*.cubin")
    assert cubin.name.startswith("own_Mine_xxx")
    assert cubin.name.endswith(f"x.sm_80.{key[:8]}.cubin")
    assert len(cubin.name) < 255


def test_source_and_spirv(tmp_path, monkeypatch):
    """Of what the SYCL compiler's process gave back."""
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("EXACTILE_JIT_DUMP", str(tmp_path / "dump"))
    program = ("// for a dump\n", "exactile::sycl::portable::prefill_kernel<float>")
    origin, key, _, _ = _core.sycl_keep(*program, "", "name", b"\x03\x02\x23\x07")
    assert origin == "compiler"
    stem = f"sycl_portable_prefill_kernel_float.{key[:8]}"
    files = {file.name: file.read_bytes() for file in (tmp_path / "dump").iterdir()}
    assert set(files) == {f"{stem}.cpp", f"{stem}.spv"}
    assert files[f"{stem}.spv"] == b"\x03\x02\x23\x07"
    assert program[0] in files[f"{stem}.cpp"].decode()
