"""Shared by the tests of the tools: options of a small batch, plans as JSON, figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from abilities import require
from exactile.tools import cli, plot

SMALL = ["--backend=cpu", "--batch=5", "--num_heads_q=4", "--num_heads_kv=2", "--seq_len_qo=40"]
SMALL += ["--iterations=2"]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def plans(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """What `exactile plan` with these options writes as JSON."""
    path = tmp_path / "plan.json"
    path.unlink(missing_ok=True)
    assert cli.main(["plan", *options, f"--json={path}"]) == 0
    return [record["plan"] for record in records(path)]


def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn from now on."""
    require("matplotlib")
    import matplotlib.figure

    figure_of, figures = matplotlib.figure.Figure, []

    def make(*args: Any, **options: Any) -> Any:
        figures.append(figure_of(*args, **options))
        return figures[-1]

    monkeypatch.setattr(plot, "figure_class", lambda: make)
    return figures
