"""Another project's kernel, built against the installed package by find_package and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import exactile
from builds import configure, run
from cases import ROOT

SOURCE = ROOT / "examples/grouped_gemm"
GROUP_ROWS = [5, 0, 37, 1, 8, 0, 3]  # main.cpp
BLOCK_M, COLUMN_TILES, WORKERS = 4, 3, 4
TILES = sum(-(-rows // BLOCK_M) for rows in GROUP_ROWS) * COLUMN_TILES
WORK_GROUPS = {
    "Individual": len(GROUP_ROWS) * -(-max(GROUP_ROWS) // BLOCK_M) * COLUMN_TILES,
    "ValidOnlyIndividual": TILES,
    "ValidOnlyPersistent": WORKERS,
    "RoundRobin": WORKERS,
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    build = tmp_path_factory.mktemp("consumer")
    configure(SOURCE, build, f"-Dexactile_DIR={exactile.cmake_dir()}")
    run("cmake", "--build", build)
    return run(build / "grouped_gemm")


@pytest.mark.parametrize("policy", WORK_GROUPS)
def test_policy(output: str, policy: str) -> None:
    line = re.search(rf"^{policy} .*$", output, re.MULTILINE)
    assert line, output
    launched, tiles = map(int, re.findall(r"\d+", line[0]))
    assert (launched, tiles) == (WORK_GROUPS[policy], TILES)
    assert line[0].endswith("exact")


def test_found_by_prefix(tmp_path: Path) -> None:
    """What the ``cmake.prefix`` entry point gives to a build run by scikit-build-core."""
    configure(SOURCE, tmp_path, f"-DCMAKE_PREFIX_PATH={Path(exactile.cmake_dir()).parent}")
