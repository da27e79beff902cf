"""The README says what the code says.

`PYTHONPATH=tests python tests/project/test_readme.py` rewrites its support table.
"""

from __future__ import annotations

import re
import shlex

import pytest

from abilities import require
from cases import ROOT
from exactile import _core
from exactile.tools import cli
from golden import CUDA_BLOCK_M, ZIPF_GRID

README = ROOT / "README.md"
MARK = "<!-- support: written by tests/project/test_readme.py -->\n"


def support_table() -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for backend, dtype, head_dim, head_dim_v in _core.support():
        dims = str(head_dim) if head_dim == head_dim_v else f"({head_dim}, {head_dim_v})"
        rows.setdefault((backend, dims), []).append(dtype)
    lines = ["| backend | head_dim, or (head_dim, head_dim_v) | dtypes |", "|---|---|---|"]
    merged: dict[tuple[str, str], list[str]] = {}
    for (backend, dims), dtypes in rows.items():
        merged.setdefault((backend, ", ".join(dtypes)), []).append(dims)
    lines += [f"| {backend} | {', '.join(dims)} | {d} |" for (backend, d), dims in merged.items()]
    return "\n".join(lines) + "\n"


def test_support_table():
    assert MARK + "\n" + support_table() in README.read_text()


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_first_command_launches_what_the_readme_says(backend, capsys):
    text = README.read_text()
    command = re.search(r"^pip install \. && (exactile bench .*)$", text, re.M)
    tiles = ZIPF_GRID[128 if backend == "cpu" else CUDA_BLOCK_M][1]
    assert cli.main(["plan", *shlex.split(command[1])[2:], f"--backend={backend}"]) == 0
    assert f"{tiles:,} launched, {tiles:,} with work, 0 empty" in capsys.readouterr().out
    for padded, valid in ZIPF_GRID.values():
        assert re.search(rf"\b{valid:,} (work-groups )?of\s[^;.]*{padded:,}", text)


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README.read_text(), re.S))
def test_the_python_examples_run(example, capsys):
    if "import torch" in example:
        require("torch")
    names = {}
    exec(example.replace("8096", "300"), names)
    assert names["out"].shape == (672 + 192 + 32 + 300, 32, 128)
    assert ("causal" in capsys.readouterr().out) == ("print" in example)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)]+)\)", README.read_text()))
def test_links_lead_somewhere(path):
    assert (README.parent / path).exists()


if __name__ == "__main__":
    text = README.read_text()
    start = text.index(MARK) + len(MARK)
    end = text.index("Every row:")
    README.write_text(text[:start] + "\n" + support_table() + "\n" + text[end:])
