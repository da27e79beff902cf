"""The tile map: cells of the padded grid, axes that panels share, and every error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import exactile
from abilities import require
from command_line import SMALL, drawn_figures
from exactile.tools import cli, plot


@pytest.mark.parametrize("options", [["--compare"], ["--is_causal"], ["--varlen", "--batch=3000"]])
def test_plot(options: list[str], tmp_path: Path) -> None:
    require("matplotlib")
    path = tmp_path / "tiles.png"
    assert cli.main(["plan", *SMALL, *options, f"--plot={path}"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_counts_the_tiles_of_the_plan() -> None:
    from exactile.tools.plot import n_blocks

    for pack_gqa in False, True:
        plan = exactile.plan(
            seqlens_q=[0, 5, 129, 400], seqlens_k=[7, 0, 100, 900],
            num_heads_q=8, num_heads_kv=2, head_dim=64, dtype="float32",
            window=(70, 3), scheduler="ValidOnlyIndividual", pack_gqa=pack_gqa,
        )  # fmt: skip
        grid = n_blocks(plan)
        assert grid.shape == (4, plan.max_m_blocks)
        assert (grid >= 0).sum() == plan.num_records
        assert (grid[1] == [0] + [-1] * (plan.max_m_blocks - 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot=missing/folder/tiles.png"], "missing/folder"),
        (["--plot=tiles.nonsense"], "nonsense"),
        (["--plot=tiles.png", "--batch=0"], "cells"),
    ],
)
def test_bad_plot(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    require("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", *SMALL, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_plot_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["plan", *SMALL, "--plot=tiles.png"]) == 2
    assert "pip install exactile[plot]" in capsys.readouterr().err


def test_panels_share_their_axes_and_name_tiles_and_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plans whose tiles hold 128, 64 and 192 tokens: a cell is as wide as its tokens."""
    figures = drawn_figures(monkeypatch)
    shape = dict(num_heads_q=4, num_heads_kv=2, head_dim=128, dtype="bfloat16")
    plans = [
        exactile.plan(seqlens_q=[1000, 5, 300], scheduler=scheduler, **shape, **options)
        for scheduler, options in (
            ("Individual", {}),
            ("ValidOnlyPersistent", {"pack_gqa": True}),
            ("ValidOnlyIndividual", {"backend": "cuda"}),
        )
    ]
    plot.tile_map(plans, tmp_path / "tiles.png")
    (figure,) = figures
    *axes, colours = figure.axes
    assert {(ax.get_xlim(), ax.get_ylim()) for ax in axes} == {
        ((0, max(plan.max_m_blocks * plan.tile_tokens for plan in plans)), (2.5, -0.5))
    }
    assert colours.get_ylabel() == "keys of a tile, in whole blocks"
    assert [ax.get_title("left") for ax in axes] == [plan.scheduler for plan in plans]
    first, packed, cuda = (ax.get_title("right") for ax in axes)
    assert first == "tiles of 128 x 64, cpu\n96 work-groups, 48 empty"
    assert packed.startswith("tiles of 128 x 64 (64 tokens x 2 heads), cpu\n")
    assert cuda.startswith(f"tiles of {plans[2].block_m} x {plans[2].block_n}, cuda\n")
    for ax, plan in zip(axes, plans, strict=True):
        (image,) = ax.images
        assert image.get_extent()[1] == plan.max_m_blocks * plan.tile_tokens
