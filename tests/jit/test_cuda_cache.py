"""Compiled kernels: found where they should be, kept safely, and a clear word when there are none.

Needs NVRTC, no GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest

import exactile
from abilities import needs, require
from cases import TESTS
from exactile import _core

needs_nvrtc = needs("nvrtc")

SOURCE = "template <int k> __global__ void add(int* x) { x[threadIdx.x] += k; }\n"

FIND = """
import json, os, sys
import exactile
from exactile import _core
_core.configure(os.environ.get("INCLUDE_DIR", exactile.include_dir()), "", sys.path)
origin, key, name, image = _core.find_cubin(sys.argv[1], "add<3>", "sm_90")
print(json.dumps([origin, key, name, len(image)]))
"""


def find(folder, source=SOURCE, **environment):
    """Origin, key, name and size of a cubin, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FIND, source],
        env=os.environ | {"EXACTILE_CACHE_DIR": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@needs_nvrtc
def test_compiled_once_then_found(tmp_path):
    origin, key, name, size = find(tmp_path)
    assert origin == "compiler"
    assert "add" in name
    assert [file.name for file in tmp_path.iterdir()] == [f"{key}.cubin"]
    assert find(tmp_path) == ["cache directory", key, name, size]
    assert find(tmp_path, SOURCE + "// another")[0] == "compiler"


@needs_nvrtc
def test_another_header_is_another_key(tmp_path):
    """Edited headers of the installation give kernels made of them."""
    cache, include = tmp_path / "cache", tmp_path / "include"
    shutil.copytree(exactile.include_dir(), include)
    first = find(cache, INCLUDE_DIR=str(include))
    assert first[0] == "compiler"
    assert find(cache)[:2] == ["cache directory", first[1]]  # no path is part of it
    with (include / "exactile" / "cuda" / "ptx.hpp").open("a") as header:
        header.write("// edited\n")
    edited = find(cache, INCLUDE_DIR=str(include))
    assert (edited[0], edited[1] != first[1]) == ("compiler", True)


@needs_nvrtc
def test_memory_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(tmp_path))
    program = ("// memory\n" + SOURCE, "add<4>", "sm_90")
    first, again = _core.find_cubin(*program), _core.find_cubin(*program)
    assert (first[0], again[0]) == ("compiler", "memory")
    assert first[1:] == again[1:]


RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from cases import make_batch
from cuda_device import run
import exactile
source = "struct Mine : exactile::ValidOnlyIndividual {\\n"
source += "  using ValidOnlyIndividual::ValidOnlyIndividual;\\n};\\n"
batch = make_batch([40, 7], dtype="bfloat16", causal=True)
batch.check(*run(batch, scheduler=exactile.Scheduler("Mine", source=source)))
"""


@needs_nvrtc
@needs("cuda")
@pytest.mark.parametrize("damage", ["garbage", "another name"])
def test_an_entry_that_the_driver_refuses_is_replaced(tmp_path, damage):
    """Its digest is right. (Cut short, some drivers crash; the digest finds that: see below.)"""

    def run():
        environment = os.environ | {"EXACTILE_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", RUN, str(TESTS)]
        subprocess.run(command, env=environment, check=True)
        (entry,) = tmp_path.iterdir()
        return entry, entry.read_bytes()

    def part(data):
        return f"{len(data)}:".encode() + data

    entry, good = run()
    image, line = good[:-1].rsplit(b"\n", 1)
    trailer, _, _, name = line.split()
    if damage == "another name":
        name = b"other"
    else:
        image = b"no cubin"
    digest = hashlib.sha256(part(entry.stem.encode()) + part(name) + part(image)).hexdigest()
    fields = [trailer, str(len(image)).encode(), digest.encode(), name]
    entry.write_bytes(image + b"\n" + b" ".join(fields) + b"\n")
    assert run() == (entry, good)


@needs_nvrtc
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_entry_is_replaced(tmp_path, damage):
    _, key, name, size = find(tmp_path)
    entry = tmp_path / f"{key}.cubin"
    good = entry.read_bytes()
    middle = size // 2
    entry.write_bytes(
        {
            "cut": good[:middle],
            "changed": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
            "empty": b"",
            "other": b"no cubin at all\n\n",
        }[damage]
    )
    assert find(tmp_path) == ["compiler", key, name, size]
    assert entry.read_bytes() == good


@needs_nvrtc
def test_a_directory_that_cannot_be_made_means_memory_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert find(tmp_path / "file" / "cache")[0] == "compiler"


@needs_nvrtc
def test_processes_that_publish_at_once(tmp_path):
    environment = os.environ | {"EXACTILE_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", FIND, SOURCE], env=environment, stdout=-1)
        for _ in range(4)
    ]
    found = [json.loads(process.communicate()[0]) for process in processes]
    assert len({tuple(result[1:]) for result in found}) == 1
    assert len(list(tmp_path.iterdir())) == 1
    assert find(tmp_path)[0] == "cache directory"


def test_cache_directory(monkeypatch):
    monkeypatch.setenv("EXACTILE_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert _core.cache_directory() == "/a"
    monkeypatch.delenv("EXACTILE_CACHE_DIR")
    assert _core.cache_directory() == "/b/exactile"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _core.cache_directory() == "/c/.cache/exactile"
    monkeypatch.delenv("HOME")
    assert _core.cache_directory() == ""


@needs_nvrtc
def test_the_compilers_log_is_in_the_error():
    with pytest.raises(RuntimeError, match=r"NVRTC_ERROR_COMPILATION \(6\)[\s\S]*nonsense"):
        _core.find_cubin("__global__ void f() { nonsense; }", "f", "sm_90")


def test_no_compiler(tmp_path):
    """Without NVRTC the error says what to install."""
    code = """
import exactile
from exactile import _core
_core.configure(exactile.include_dir(), "", [])
_core.find_cubin("__global__ void f() {}", "f", "sm_90")
"""
    environment = os.environ | {"EXACTILE_CACHE_DIR": str(tmp_path)}
    environment.pop("CUDA_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        require("no nvrtc")
    assert "RuntimeError" in done.stderr
    assert "pip install 'exactile[jit]'" in done.stderr


def test_info_without_a_compiler_speaks_of_no_kernel_that_was_asked_for():
    code = """
import exactile
exactile._core.configure(exactile.include_dir(), "", [])
print(exactile.info()["backends"]["cuda"]["nvrtc_reason"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    if done.stdout == "None\n":
        require("no nvrtc")
    assert "pip install 'exactile[jit]'" in done.stdout
    assert "this kernel" not in done.stdout
