"""What a machine may lack that some tests need: is it here, and how to get it.

Tests are skipped through this table alone, so that the end of a run can list what was not tested.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import exactile
from exactile import _core

CUBINS = Path(_core.__file__).parent / "cubins"
# The tools of the test extra, also where its environment is not activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
if "CUDA_HOME" in os.environ:
    PATH = os.pathsep.join([str(Path(os.environ["CUDA_HOME"], "bin")), PATH])

# Best first, as src/CMakeLists.txt builds them.
ISAS = ["baseline"]
if platform.machine() == "x86_64":
    ISAS = ["amx_bf16", "avx512_bf16", "avx512", "avx2", *ISAS]


class Ability(NamedTuple):
    """Its name, as in "no CUDA GPU", how to get it, and whether it is here."""

    name: str
    how: str
    is_here: Callable[[], bool]

    def reason(self) -> str:
        return f"no {self.name} ({self.how})"


@cache
def backends() -> dict[str, Any]:
    return exactile.info()["backends"]


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def module(name: str) -> Any:
    """The module, or None where it is not installed."""
    return importlib.import_module(name) if has_module(name) else None


def find_program(name: str) -> str | None:
    return shutil.which(name, path=PATH)


def has_program(name: str) -> bool:
    return find_program(name) is not None


def has_cuda() -> bool:
    """A GPU that exactile and PyTorch see."""
    if not backends()["cuda"]["available"] or not has_module("torch"):
        return False
    return module("torch").cuda.is_available()


def has_hopper() -> bool:
    return any(x["compute_capability"] == (9, 0) for x in backends()["cuda"]["devices"])


def has_jax_on_a_gpu() -> bool:
    return has_module("jax") and module("jax").default_backend() == "gpu"


def has_gpu_memory() -> bool:
    return has_cuda() and module("torch").cuda.mem_get_info()[0] >= 40 << 30


def is_editable() -> bool:
    url = distribution("exactile").read_text("direct_url.json") or "{}"
    return json.loads(url).get("dir_info", {}).get("editable", False)


def cuda_headers() -> Path | None:
    """The folder that cuda.h and cudaTypedefs.h are in: of a Python package, or of a toolkit."""
    found = importlib.util.find_spec("nvidia")
    packages = found.submodule_search_locations if found else None
    folders = [Path(each, "cu13") for each in packages or ()]
    folders += [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")]
    each = (folder / "include" for folder in folders)
    return next((path for path in each if (path / "cudaTypedefs.h").exists()), None)


def package(name: str, distribution_name: str | None = None) -> Ability:
    """A Python package, by the name of its module."""
    return Ability(name, f"pip install {distribution_name or name}", partial(has_module, name))


def program(name: str, how: str) -> Ability:
    return Ability(name, how, partial(has_program, name))


def is_isa_here(name: str) -> bool:
    return name in backends()["cpu"]["isas"]


ABILITIES = {
    "cuda": Ability(
        "CUDA GPU",
        "a GPU of compute capability 8.0 or newer, its driver, PyTorch with CUDA; "
        "`exactile info` says more",
        has_cuda,
    ),
    "two gpus": Ability(
        "second CUDA GPU",
        "a machine with two or more",
        lambda: has_cuda() and module("torch").cuda.device_count() > 1,
    ),
    "hopper": Ability("Hopper GPU", "compute capability 9.0", has_hopper),
    "gpu memory": Ability("40 GB of free GPU memory", "a larger GPU", has_gpu_memory),
    "nvrtc": Ability(
        "NVRTC", "pip install '.[jit]'", lambda: backends()["cuda"]["nvrtc"] is not None
    ),
    "oldest nvrtc": Ability(
        "NVRTC 12.4",
        "pip install --target=DIR 'nvidia-cuda-nvrtc-cu12==12.4.*', EXACTILE_OLDEST_NVRTC=DIR",
        lambda: "EXACTILE_OLDEST_NVRTC" in os.environ,
    ),
    "cubins": Ability(
        "CUDA kernels in this installation",
        "build it without EXACTILE_CUBINS=0",
        (CUBINS / "report.json").exists,
    ),
    "sycl": Ability(
        "SYCL device",
        "pip install '.[sycl-cpu]' ./python/exactile-sycl; `exactile info` says more",
        lambda: backends()["sycl"]["available"] and has_module("dpnp"),
    ),
    "spirv": Ability(
        "SYCL kernels in this installation",
        "build it with EXACTILE_SPIRV=1",
        lambda: bool(backends()["sycl"].get("kernels")),
    ),
    "torch": package("torch"),
    "jax": package("jax"),
    "jax.numpy": Ability("JAX on a GPU", "pip install 'jax[cuda13]'", has_jax_on_a_gpu),
    "cupy": package("cupy", "cupy-cuda13x"),
    "matplotlib": package("matplotlib"),
    "ml_dtypes": package("ml_dtypes"),
    "mypy": package("mypy"),
    "xdist": package("xdist", "pytest-xdist"),
    "c++": program("c++", "Debian: apt-get install g++"),
    "g++": program("g++", "Debian: apt-get install g++"),
    "g++-11": program("g++-11", "Debian: apt-get install g++-11"),
    "clang++": program("clang++", "Debian: apt-get install clang"),
    "clang++-15": program("clang++-15", "Debian: apt-get install clang-15"),
    "cuda headers": Ability(
        "CUDA headers",
        "pip install nvidia-cuda-runtime, or the toolkit and CUDA_HOME",
        lambda: cuda_headers() is not None,
    ),
    "nvcc": program("nvcc", "the CUDA toolkit, 12.4 or newer"),
    "cmake": program("cmake", "pip install '.[test]'"),
    "ninja": program("ninja", "pip install '.[test]'"),
    "ocloc": program("ocloc", "Debian: apt-get install intel-opencl-icd"),
    "iga64": program("iga64", "Debian: apt-get install libigc-tools"),
    "bash": program("bash", "Debian: apt-get install bash"),
    "root": Ability(
        "right to give a file to another user", "run as root", lambda: os.geteuid() == 0
    ),
    "editable": Ability(
        "editable installation", "pip install --no-build-isolation -e .", is_editable
    ),
    "/dev/full": Ability("/dev/full", "Linux", Path("/dev/full").exists),
    "/dev/zero": Ability("/dev/zero", "Linux", Path("/dev/zero").exists),
    "no nvrtc": Ability("machine without NVRTC", "one whose loader finds none", lambda: False),
}
ABILITIES |= {
    isa: Ability(isa, "an x86-64 CPU that has these instructions", partial(is_isa_here, isa))
    for isa in ISAS
}


@cache
def is_here(name: str) -> bool:
    return ABILITIES[name].is_here()


def needs(name: str) -> pytest.MarkDecorator:
    """The mark of tests that are skipped where the ability is not here."""
    return pytest.mark.skipif(not is_here(name), reason=ABILITIES[name].reason())


def require(name: str) -> None:
    """Skip the running test where the ability is not here."""
    if not is_here(name):
        pytest.skip(ABILITIES[name].reason())


def summary(skipped: list[Any]) -> list[str]:
    """A line for each reason of skipped tests, and how many there are of it."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    return [
        f"{count} test{'s' * (count > 1)} skipped: {reason}"
        for reason, count in reasons.most_common()
    ]
