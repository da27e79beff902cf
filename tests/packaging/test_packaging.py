"""What the distributions say of themselves, and how the headers reach other projects."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import exactile
from abilities import needs, require
from builds import configure, run
from cases import ROOT


def test_one_version():
    """In both distributions, the pins between them, CMake and what is cited."""
    places = {
        "pyproject.toml": r'^version = "(.+)"',
        "python/exactile-sycl/pyproject.toml": r'^version = "(.+)"',
        "CMakeLists.txt": r"^project\(exactile VERSION (\S+)",
        "CITATION.cff": r"^version: (.+)$",
    }
    found = {
        place: re.search(pattern, (ROOT / place).read_text(), re.MULTILINE)[1]
        for place, pattern in places.items()
    }
    found |= dict(
        enumerate(re.findall('exactile-sycl==([^"]+)', (ROOT / "pyproject.toml").read_text()))
    )
    assert set(found.values()) == {exactile.__version__}, found


def test_metadata_holds_no_place_of_the_builder():
    """A requirement by URL works nowhere else, and no index takes it."""
    fields = metadata("exactile")
    assert not [line for line in fields.get_all("Requires-Dist") if "@" in line or "/" in line]
    assert f"exactile-sycl=={exactile.__version__}" in str(fields.get_all("Requires-Dist"))


def test_metadata_for_an_index():
    fields = metadata("exactile")
    assert fields["Author"] == "exactile developers"
    assert fields["License-Expression"] == "Apache-2.0"
    classifiers = fields.get_all("Classifier")
    for wanted in "Typing :: Typed", *(f"Python :: 3.{minor}" for minor in range(10, 14)):
        assert any(wanted in line for line in classifiers)


def test_description_leads_nowhere_into_the_tree():
    """An index shows neither pictures nor pages of the source tree."""
    text = metadata("exactile").get_payload()
    assert text.startswith("# exactile")
    assert re.findall(r"\]\((?!https?://|#)[^)]*\)", text) == []


def test_cmake_installs_a_clone(tmp_path):
    """Headers, target and configuration, without Python; another project finds and uses them."""
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    configure(ROOT, build)
    run("cmake", "--install", build, "--prefix", prefix)
    headers = {file.relative_to(ROOT) for file in (ROOT / "include").rglob("*.hpp")}
    assert headers <= {file.relative_to(prefix) for file in prefix.rglob("*.hpp")}
    configure(
        ROOT / "examples/grouped_gemm", tmp_path / "consumer", f"-DCMAKE_PREFIX_PATH={prefix}"
    )
    cache = (tmp_path / "consumer" / "CMakeCache.txt").read_text()
    assert f"exactile_DIR:PATH={prefix}" in cache
    run("cmake", "--build", tmp_path / "consumer", "--target", "grouped_gemm")
    run(tmp_path / "consumer" / "grouped_gemm")


@needs("editable")
def test_an_editable_installation_serves_the_headers_of_the_tree():
    assert Path(exactile.include_dir()) == ROOT / "include"
    assert str(ROOT / "include") in Path(exactile.cmake_dir(), "exactile-config.cmake").read_text()


def test_kernels_are_not_left_out_in_silence(tmp_path):
    """A build without NVRTC fails and names what to do."""
    require("c++")
    build_cubins = tmp_path / "build_cubins"
    src = ROOT / "src"
    sources = [src / "cuda/build_cubins.cpp", src / "cuda/kernels.cpp"]
    sources += src.glob("jit/*.cpp")
    run("c++", "-std=c++20", "-I", ROOT / "include", "-I", ROOT / "src", "-o", build_cubins,
        *sources, "-ldl")  # fmt: skip

    def too_small_for_nvrtc() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (64 << 20, 64 << 20))

    done = subprocess.run(
        [build_cubins, ROOT / "include", tmp_path / "cubins", "1", *filter(None, sys.path)],
        preexec_fn=too_small_for_nvrtc,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert (
        "expected NVRTC, found none: pip install nvidia-cuda-nvrtc, or set EXACTILE_CUBINS=0"
        in done.stderr
    )


def test_both_distributions_have_the_licence():
    licence = (ROOT / "LICENSE").read_text()
    assert (ROOT / "python/exactile-sycl/LICENSE").read_text() == licence
