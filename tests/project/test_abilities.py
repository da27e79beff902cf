"""The end of a run lists what was not tested: a line for each missing ability."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import exactile
from abilities import ABILITIES, ISAS, needs
from cases import TESTS

SOME_TESTS = """
import pytest
from abilities import ABILITIES, Ability, needs, require

ABILITIES["wings"] = Ability("wings", "grow them", lambda: False)
ABILITIES["legs"] = Ability("legs", "stand up", lambda: True)

@needs("wings")
@pytest.mark.parametrize("height", range(3))
def test_fly(height):
    raise AssertionError

def test_glide():
    require("wings")
    raise AssertionError

@needs("legs")
def test_walk():
    require("legs")

def test_reason_of_its_own():
    pytest.skip("tired")
"""


def run_pytest(folder: Path, *options: str) -> str:
    """Output of pytest over the files of a folder, with the plugin that these tests have."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider",
         f"--rootdir={folder}", *options, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "options", [[], pytest.param(["-n2"], marks=needs("xdist")), ["-rs"]], ids=str
)
def test_a_line_for_each_ability(options, tmp_path):
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    lines = run_pytest(tmp_path, *options).splitlines()
    listed = [line for line in lines if re.match(r"\d+ tests? skipped", line)]
    assert listed == ["4 tests skipped: no wings (grow them)", "1 test skipped: tired"]


def test_nothing_is_listed_when_nothing_is_skipped(tmp_path):
    (tmp_path / "test_some.py").write_text("def test_one():\n    pass\n")
    assert "not tested here" not in run_pytest(tmp_path)


def test_all_skips_come_from_the_table():
    """Each test is collected everywhere, too: a module that skips itself has no number of tests."""
    calls = re.compile(r"pytest\.skip\(|importorskip|mark\.skip")
    allowed = {"abilities.py", Path(__file__).name}
    found = {path.name for path in TESTS.rglob("*.py") if calls.search(path.read_text())} - allowed
    assert not found


def test_names_are_told_apart():
    assert len({ability.reason() for ability in ABILITIES.values()}) == len(ABILITIES)


def test_no_instruction_set_is_left_out():
    assert set(exactile.info()["backends"]["cpu"]["isas"]) <= set(ISAS)
