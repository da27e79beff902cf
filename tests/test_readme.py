"""The README says what the code says. `python tests/test_readme.py` rewrites its support table."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from exactile import _core, cli

README = Path(__file__).parent.parent / "README.md"
MARK = "<!-- support: written by tests/test_readme.py -->\n"


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


def test_the_first_command_runs(capsys):
    command = re.search(r"^pip install \. && (exactile bench .*)$", README.read_text(), re.M)
    arguments = shlex.split(command[1])[1:]
    plan_only = [a for a in arguments[1:] if "iterations" not in a]
    assert cli.main(["plan", *plan_only]) == 0
    assert "3,808 launched" in capsys.readouterr().out


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README.read_text(), re.S))
def test_the_python_examples_run(example, capsys):
    if "import torch" in example:
        pytest.importorskip("torch")
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
