"""The code is in layers: no file includes one of a layer above its own, nor the library a tool."""

import re
import subprocess
import sys

import pytest

from cases import ROOT
from exactile import _core

LAYERS = [
    {"base"},  # plans, requests, arguments: data that all share
    {"jit"},  # compilers and the cache of what they made
    set(_core.BACKENDS),  # which do not know one another
    {"api"},  # planning, checks, the table of backends
    {"python"},
]
"""From the lowest; each knows those before it."""

SOURCES = sorted((ROOT / "src").rglob("*.[ch]pp"))


def layer_of(folder):
    return next(i for i, layer in enumerate(LAYERS) if folder in layer)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_includes_point_down(path):
    own = path.relative_to(ROOT / "src").parts[0]
    for included in re.findall(r'#include "([^"]+)"', path.read_text()):
        if included == "exactile-sycl/table.hpp" and own == "sycl":
            continue  # the interface of the other distribution
        assert (ROOT / "src" / included).is_file(), included
        folder = included.split("/")[0]
        assert folder == own or layer_of(folder) < layer_of(own), included


def test_the_planner_and_the_checks_know_no_backend_by_name():
    for name in ("planner.cpp", "prefill.cpp"):
        assert "Backend::k" not in (ROOT / "src/api" / name).read_text()


def test_the_library_imports_no_tool():
    """Neither when it is imported nor later: no file of it names them but the command line's."""
    code = "import exactile, sys; print(*(x for x in sys.modules if x.startswith('exactile.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "exactile.planning" in loaded
    assert not [name for name in loaded if name.startswith(("exactile.tools", "exactile.cli"))]
    library = (ROOT / "python/exactile").glob("*.py")
    named = {path.name for path in library if "exactile.tools" in path.read_text()}
    assert named == {"cli.py"}


def test_one_ruler():
    """GPU runs are timed by events in one place, which the benchmarks share with the command."""
    files = [*ROOT.glob("python/**/*.py"), *(ROOT / "benchmarks").glob("*.py")]
    timing = {path.name for path in files if ".elapsed_time(" in path.read_text()}
    assert timing == {"machines.py"}


def test_no_test_imports_another():
    """What tests share lies beside their folders, in modules that hold no test."""
    importing = re.compile(r"^\s*(?:from|import) (test_\w+|conftest)\b", re.M)
    found = {
        path.name: names
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if (names := importing.findall(path.read_text()))
    }
    assert found == {}
