"""SPIR-V: compiled once, found by a second process, and by the rules of the CUDA cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

import exactile
from abilities import require
from cases import DTYPES, TESTS
from exactile import _core, _sycl
from sycl_device import ROWS, needs_device

pytestmark = needs_device

SOURCE = """
#include <sycl/sycl.hpp>
template <int k>
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((sycl::ext::oneapi::experimental::nd_range_kernel<1>))
void add(int* x) { x[sycl::ext::oneapi::this_work_item::get_nd_item<1>().get_global_id(0)] += k; }
"""

FIND = """
import json, sys
from exactile import _sycl
origin, key, name, image = _sycl.find_spirv(_sycl.default_queue(), sys.argv[1], "add<3>")
print(json.dumps([origin, key, name, len(image)]))
"""

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from cases import make_batch
from sycl_device import run
from exactile import _sycl
if sys.argv[2] == "no wheel":
    _sycl._runtime = _sycl.runtime()._replace(wheel="")
origins, find = [], _sycl.find_spirv
def found(*arguments):
    result = find(*arguments)
    origins.append(result[0])
    return result
_sycl.find_spirv = found
batch = make_batch([40, 7], dtype="bfloat16", causal=True)
batch.check(*run(batch))
print(*origins)
"""


def python(code, *arguments, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"EXACTILE_CACHE_DIR": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def find(folder, source=SOURCE):
    """Origin, key, name and size of SPIR-V, in a process of its own."""
    return json.loads(python(FIND, source, folder=folder))


def test_saved_by_one_process_and_run_by_another(tmp_path):
    tests = str(TESTS)
    assert python(RUN, tests, "no wheel", folder=tmp_path) == "compiler\n"
    (entry,) = tmp_path.iterdir()
    assert entry.suffix == ".spv"
    assert int.from_bytes(entry.read_bytes()[:4], "little") == 0x07230203  # SPIR-V's magic number
    assert python(RUN, tests, "no wheel", folder=tmp_path) == "cache directory\n"


def test_a_wheel_built_with_kernels_has_all_of_them(tmp_path):
    shipped = exactile.info()["backends"]["sycl"]["kernels"]
    require("spirv")
    assert shipped == len(ROWS) * len(exactile.SCHEDULERS) + 2 * len(DTYPES)  # merge, append_kv
    assert python(RUN, str(TESTS), "wheel", folder=tmp_path) == "wheel\n"
    assert list(tmp_path.iterdir()) == []


def test_compiled_once_then_found(tmp_path):
    origin, key, name, size = find(tmp_path)
    assert origin == "compiler"
    assert "add" in name
    assert [file.name for file in tmp_path.iterdir()] == [f"{key}.spv"]
    assert find(tmp_path) == ["cache directory", key, name, size]
    assert find(tmp_path, SOURCE + "// another")[0] == "compiler"


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_entry_is_replaced(tmp_path, damage):
    _, key, name, size = find(tmp_path)
    entry = tmp_path / f"{key}.spv"
    good = entry.read_bytes()
    middle = size // 2
    changed = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    entry.write_bytes({"cut": good[:middle], "changed": changed}[damage])
    assert find(tmp_path) == ["compiler", key, name, size]
    assert entry.read_bytes() == good


def test_a_directory_that_cannot_be_made_means_memory_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert find(tmp_path / "file" / "cache")[0] == "compiler"


LOAD = """
import sys
from exactile import _sycl
origins, find = [], _sycl.find_spirv
def found(*arguments):
    result = find(*arguments)
    origins.append(result[0])
    return result
_sycl.find_spirv = found
_sycl._load(_sycl.default_queue(), sys.argv[1], "add<3>", 128)
print(*origins, sep=", ")
"""


@pytest.mark.parametrize("damage", ["garbage", "another name"])
def test_an_entry_that_the_runtime_refuses_is_replaced(tmp_path, monkeypatch, damage):
    """Its digest is right: it was written so.

    At SPIR-V that is cut short the CPU device's compiler ends the process.
    """
    find(tmp_path)
    (entry,) = tmp_path.iterdir()
    good = entry.read_bytes()
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(tmp_path))
    _, _, name, image = _core.sycl_look_up(SOURCE, "add<3>", f"/{uuid.uuid4()}")
    if damage == "another name":
        name = "other"
    else:
        image = b"no SPIR-V"
    _core.sycl_keep(SOURCE, "add<3>", "", name, image)
    assert entry.read_bytes() != good
    assert python(LOAD, SOURCE, folder=tmp_path) == "cache directory, cache directory, compiler\n"
    assert entry.read_bytes() == good
    assert python(LOAD, SOURCE, folder=tmp_path) == "cache directory\n"


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that counts what it is asked for, and waits at a barrier."""

    class Compiler:
        calls = 0

        def __call__(self, queue, source, name_expression):
            self.calls += 1
            self.barrier.wait(timeout=30)
            return "name", source.encode()

    fake = Compiler()
    fake.barrier = threading.Barrier(1)
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_sycl, "compile_program", fake)
    return fake


def at_once(sources):
    """What threads find that ask at the same time."""
    queue = _sycl.default_queue()
    start = threading.Barrier(len(sources))

    def ask(source):
        start.wait(timeout=30)
        return _sycl.find_spirv(queue, source, "k")

    with ThreadPoolExecutor(len(sources)) as pool:
        return list(pool.map(ask, sources))


def test_threads_wait_for_one_compilation(compiler):
    source = f"// {uuid.uuid4()}"
    found = at_once([source] * 8)
    assert compiler.calls == 1
    assert sorted(result[0] for result in found) == ["compiler"] + ["memory"] * 7
    assert len({result[1:] for result in found}) == 1


def test_different_programs_compile_side_by_side(compiler):
    compiler.barrier = threading.Barrier(2)
    at_once([f"// {uuid.uuid4()}", f"// {uuid.uuid4()}"])
    assert compiler.calls == 2


@pytest.mark.parametrize("executable", ["", None, "/bin/true"])
def test_embedded_interpreter(executable, tmp_path, monkeypatch):
    """Where sys.executable is no Python, that of the installation is taken."""
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr("multiprocessing.spawn._python_exe", executable)
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(tmp_path))
    _, image = _sycl.compile_program(_sycl.default_queue(), SOURCE, "add<3>")
    assert image
    for name in ("exec_prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    with pytest.raises(RuntimeError, match=r"expected a Python interpreter .*set_executable"):
        _sycl.compile_program(_sycl.default_queue(), SOURCE, "add<3>")
