"""The documentation says what the code does: its commands, its Python blocks, its tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

from abilities import needs
from cases import ROOT
from exactile.tools import cli

DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?:<!-- needs (\w+) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    needs: str  # "", "torch" or "cuda"
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*groups) for groups in BLOCK.findall(page.read_text())]


# --- Python blocks ------------------------------------------------------------------------------


NEEDS = ["", "torch", "cuda"]  # each includes those before it
PAGES_WITH_PYTHON = [
    pytest.param(page, need, id=f"{page.stem} {need}".strip(), marks=needs(need) if need else ())
    for page in sorted(DOCS.glob("*.md"))
    for need in NEEDS
    if any(block.language == "python" and block.needs == need for block in blocks(page))
]


@pytest.mark.parametrize(("page", "need"), PAGES_WITH_PYTHON)
def test_python_blocks_run(page, need, tmp_path, monkeypatch):
    """The blocks of a page in one namespace, up to those with a need."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if block.language == "python" and NEEDS.index(block.needs) <= NEEDS.index(need):
            exec(compile(block.text, str(page), "exec"), names)


# --- the first ten minutes ----------------------------------------------------------------------


def matches(expected: str, got: str) -> bool:
    """Whether the output is the expected one.

    `...` stands for any text within a line, or alone on a line for any lines; runs of spaces are
    alike, since columns grow with what stands in them.
    """

    def lines(text: str) -> list[str]:
        return [re.sub(" +", " ", line.rstrip()) for line in text.splitlines()]

    def pattern(line: str) -> str:
        return "(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"

    text = "".join(line + "\n" for line in lines(got))
    return re.fullmatch("".join(map(pattern, lines(expected))), text) is not None


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ("a b\n", "a   b\n", True),
        ("a ... ms\n", "a 12.5 ms\n", True),
        ("a ... ms\n", "a 12.5\n ms\n", False),
        ("a\n...\nz\n", "a\nb\nc\nz\n", True),
        ("a\n...\nz\n", "a\nz\n", True),
        ("a\n", "a\nb\n", False),
        ("", "a\n", False),
        ("", "", True),
    ],
)
def test_wildcards(expected, got, same):
    assert matches(expected, got) == same


def steps(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of a block: commands begin with "$ ", go on with "> "."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif line.startswith("> "):
            found[-1] = (found[-1][0] + line[2:], "")
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def test_the_first_ten_minutes(tmp_path):
    """A block that begins with a comment of a file's name is that file; commands run in order."""
    scripts = os.pathsep.join((str(Path(sys.executable).parent), sysconfig.get_path("scripts")))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EXACTILE_")}
    environment |= {"PATH": scripts + os.pathsep + os.environ["PATH"], "COLUMNS": "100"}
    for block in blocks(DOCS / "first_ten_minutes.md"):
        if block.language in ("python", "cpp"):
            name = re.match(r"(?:#|//) (\w+\.\w+)\n", block.text)
            assert name, f"expected a comment with a file's name first:\n{block.text}"
            (tmp_path / name[1]).write_text(block.text)
        for command, expected in steps(block.text) if block.language == "console" else ():
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
            assert matches(expected, done.stdout), (
                f"$ {command}--- the page says\n{expected}--- the command says\n{done.stdout}"
            )


# --- examples -------------------------------------------------------------------------------------


def test_the_examples_are_what_the_pages_show():
    """A block that begins with a comment of a file's name; so the tests above run the examples."""
    shown = {}
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for block in blocks(page):
            if name := re.match(r"(?:#|//) (\w+\.(?:py|cpp))\n", block.text):
                shown[name[1]] = block.text
    there = {path.name: path.read_text() for path in (ROOT / "examples").glob("*.[pc]*")}
    assert shown == there


# --- figures --------------------------------------------------------------------------------------


def test_the_figures_of_the_readme_are_those_of_the_table():
    def figures(page: Path) -> dict[str, list[str]]:
        rows = re.findall(r"^\| (W\d+): [^|]* \| (.*) \|$", page.read_text(), re.M)
        return {name: cells.split(" | ") for name, cells in rows}

    table, readme = figures(DOCS / "performance.md"), figures(ROOT / "README.md")
    assert len(readme) == 5
    assert readme == {name: table[name] for name in readme}


# --- options of the command line ----------------------------------------------------------------


def test_the_tables_of_options(capsys):
    """Those of `bench` and `plan` are all in the page, and no other is."""
    options = set()
    for command in ("bench", "plan"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        options |= set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help"}
    text = (DOCS / "command_line.md").read_text()
    listed = {
        x for row in re.findall(r"^\| (`--.*?) \|", text, re.M) for x in re.findall(r"--\w+", row)
    }
    assert sorted(listed) == sorted(options)


# --- environment variables ----------------------------------------------------------------------

VARIABLE = r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|HOME"


def read_by_the_code() -> set[str]:
    """Names of the variables that sources, build files and pyproject.toml read."""
    found: set[str] = set()
    for path in sorted([*ROOT.glob("src/**/*"), *ROOT.glob("python/**/*")]):
        if path.suffix not in (".cpp", ".hpp", ".py"):
            continue
        text = path.read_text()
        quoted = set(re.findall(rf'"({VARIABLE})"(?!:)', text))
        reads = re.search(r"getenv\(|os\.environ|\benviron\b", text)
        found |= quoted if reads else {name for name in quoted if name.startswith("EXACTILE_")}
    for path in [ROOT / "pyproject.toml", *ROOT.glob("python/**/pyproject.toml")]:
        found |= set(re.findall(rf"if\.env\.({VARIABLE})", path.read_text()))
    builds = [ROOT / "CMakeLists.txt", *ROOT.glob("src/**/CMakeLists.txt")]
    for path in [*builds, *ROOT.glob("python/**/CMakeLists.txt")]:
        found |= set(re.findall(rf"\$ENV\{{({VARIABLE})\}}", path.read_text()))
    return found


def test_the_table_of_environment_variables():
    text = (DOCS / "environment.md").read_text()
    listed = re.findall(rf"^\| `({VARIABLE})` \|", text, re.M)
    assert sorted(listed) == sorted(read_by_the_code())
