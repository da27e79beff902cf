"""SPIR-V: compiled once, found by a second process, and by the rules of the CUDA cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import exactile
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
from conftest import make_batch
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
    tests = os.path.dirname(__file__)
    assert python(RUN, tests, "no wheel", folder=tmp_path) == "compiler\n"
    (entry,) = tmp_path.iterdir()
    assert entry.suffix == ".spv"
    assert int.from_bytes(entry.read_bytes()[:4], "little") == 0x07230203  # SPIR-V's magic number
    assert python(RUN, tests, "no wheel", folder=tmp_path) == "cache directory\n"


def test_a_wheel_built_with_kernels_has_all_of_them(tmp_path):
    shipped = exactile.info()["backends"]["sycl"]["kernels"]
    if not shipped:
        pytest.skip(
            "this installation was built without SYCL kernels (EXACTILE_SPIRV=1 brings them)"
        )
    assert shipped == len(ROWS) * len(exactile.SCHEDULERS)
    assert python(RUN, os.path.dirname(__file__), "wheel", folder=tmp_path) == "wheel\n"
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
