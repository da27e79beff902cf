"""Plots: the tile map, which cells of the padded grid are launched; the timeline of every SM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exactile.planning import Plan
from exactile.tools.timeline import PHASES, Slices, Timeline

NOT_LAUNCHED, EMPTY = "#f1f1f1", "#f7ccad"
"""Colours of cells without work; cells with work are coloured by their number of key blocks."""

PHASE_COLOURS = dict(zip(PHASES, ("#f2a93b", "#3a8fc4", "#123f7d", "#d1495b"), strict=True))

_MAX_CELLS = 1 << 24
_TIME_BINS = 1500
"""Columns of a timeline: about one for a pixel."""


def tile_map(plans: Sequence[Plan], path: str | Path) -> None:
    """Draw the padded grid of one head under each plan, side by side, into an image file.

    All panels share both axes and the colours, which count keys: tiles may differ in size.

    Parameters
    ----------
    plans : sequence of Plan
        One or more plans of the same batch.
    path : str or pathlib.Path
        The file; its suffix gives the format.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        There is no tile, there are too many to draw, or the format is unknown.
    OSError
        The file cannot be written.
    """
    figure_of = figure_class()
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.patches import Patch

    keys = [n_blocks(plan) * plan.block_n for plan in plans]
    fewest = min(plan.block_n for plan in plans)
    most = max(int(grid.max(initial=0)) for grid in keys)
    colours = LinearSegmentedColormap.from_list("work", ["#b7dcec", "#3a8fc4", "#123f7d"])
    work = ScalarMappable(LogNorm(fewest, max(most, 2 * fewest)), colours)
    figure = figure_of(figsize=(1.4 + 5.2 * len(plans), 3.8), dpi=160, layout="constrained")
    axes = figure.subplots(1, len(plans), sharex=True, sharey=True, squeeze=False)[0]
    for ax, plan, grid in zip(axes, plans, keys, strict=True):
        _draw(ax, plan, grid, work)
    axes[0].set_xlim(0, max(plan.max_m_blocks * plan.tile_tokens for plan in plans))
    axes[0].set_ylabel("sequence")
    bar = figure.colorbar(work, ax=axes, pad=0.01, aspect=30, format="{x:,.0f}")
    bar.set_label("keys of a tile, in whole blocks")
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0, labelsize=8)
    kinds = {"launched, empty": EMPTY, "not launched": NOT_LAUNCHED}
    handles = [Patch(facecolor=colour, label=label) for label, colour in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path)


def figure_class() -> Any:
    """The Figure of matplotlib; ImportError that says how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install exactile[plot]") from error
    return Figure


def timeline(timelines: Sequence[Timeline], path: str | Path) -> None:
    """Draw what every SM did into an image file: a panel per launch, all on one time axis.

    A pixel mixes the colours of what happened in it. Where work-groups share an SM, so do they its
    row.

    Parameters
    ----------
    timelines : sequence of Timeline
        One or more, of the same device.
    path : str or pathlib.Path
        The file; its suffix gives the format.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        The format is unknown.
    OSError
        The file cannot be written.
    """
    figure_of = figure_class()
    from matplotlib.patches import Patch

    longest_us = max(max(one.span_ns for one in timelines), 1) / 1e3
    figure = figure_of(figsize=(12, 1.1 + 2.8 * len(timelines)), dpi=160, layout="constrained")
    axes = figure.subplots(len(timelines), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, one in zip(axes, timelines, strict=True):
        _draw_timeline(ax, one, longest_us)
    axes[-1].set_xlabel("microseconds since the first work-group began")
    handles = [Patch(facecolor=colour, label=name) for name, colour in PHASE_COLOURS.items()]
    handles.append(Patch(facecolor=NOT_LAUNCHED, label="idle"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    figure.savefig(path)


def _draw_timeline(ax: Any, one: Timeline, longest_us: float) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.ticker import MaxNLocator

    slices = one.slices()
    lanes = int(slices.lane.max()) + 1
    share = busy_share(slices, one.num_sms * lanes, lanes, round(1e3 * longest_us) / _TIME_BINS)
    colours = np.array([to_rgb(colour) for colour in PHASE_COLOURS.values()])
    idle = np.clip(1 - share.sum(axis=2, keepdims=True), 0, 1) * np.array(to_rgb(NOT_LAUNCHED))
    ax.imshow(
        np.clip(share @ colours + idle, 0, 1),
        aspect="auto",
        interpolation="nearest",
        extent=(0, longest_us, one.num_sms - 0.5, -0.5),
    )
    end_us = one.span_ns / 1e3
    if end_us < longest_us:
        ax.axvline(end_us, color="black", linewidth=0.8)
    shares = one.shares()
    names = ("main loop", "empty", "between", "tail")
    text = f"{one.launched:,} work-groups, {one.num_empty:,} empty; {end_us:,.0f} us: "
    _title(ax, one.plan, text + ", ".join(f"{name} {shares[name]:.1%}" for name in names))
    ax.set_ylabel("SM")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)


def _title(ax: Any, plan: Plan, launch: str) -> None:
    """Scheduler to the left; tiles and backend, and what was launched, to the right."""
    tiles = f"tiles of {plan.block_m} x {plan.block_n}"
    if plan.pack_gqa:
        group = plan.num_heads_q // plan.num_heads_kv
        tiles += f" ({plan.tile_tokens} tokens x {group} heads)"
    if plan.pack_sequences:
        tiles += ", short sequences share them"
    ax.set_title(plan.scheduler, fontsize=11, fontweight="bold", loc="left")
    ax.set_title(f"{tiles}, {plan.backend}\n{launch}", fontsize=9, loc="right")


def busy_share(slices: Slices, rows: int, lanes: int, bin_ns: float) -> npt.NDArray[np.float64]:
    """Part of every time bin that every row spent in every phase, (rows, _TIME_BINS, phases).

    A row is a lane of an SM, the lanes of an SM together.
    """
    shape = rows, _TIME_BINS + 2, len(PHASES)
    inside, after = np.zeros(shape), np.zeros(shape)
    row = slices.sm * lanes + slices.lane
    for times, sign in (slices.begin_ns, 1), (slices.end_ns, -1):
        at = np.minimum(times / max(bin_ns, 1e-9), _TIME_BINS)
        column = at.astype(np.int64)
        np.add.at(inside, (row, column, slices.phase), sign * (column + 1 - at))
        np.add.at(after, (row, column + 1, slices.phase), sign)
    share: npt.NDArray[np.float64] = (inside + after.cumsum(axis=1))[:, :_TIME_BINS]
    return share


def n_blocks(plan: Plan) -> npt.NDArray[np.int32]:
    """Key blocks that each tile of the padded grid visits, (batch, max m_blocks); -1: no tile.

    Raises
    ------
    ValueError
        The grid has no cell, or too many.
    """
    len_q, len_k = (seqlens.astype(np.int64)[:, None] for seqlens in plan.seqlens)
    if not 0 < plan.batch * plan.max_m_blocks <= _MAX_CELLS:
        cells = f"{plan.batch} x {plan.max_m_blocks}"
        raise ValueError(f"tile map: expected 1 to {_MAX_CELLS} cells, got {cells}")
    first = np.arange(plan.max_m_blocks) * plan.tile_tokens  # row of the sequence
    last = np.minimum(first + plan.tile_tokens, len_q) - 1
    position = len_k - len_q
    left, right = plan.window
    begin = np.maximum(first + position - left, 0) if left >= 0 else np.zeros_like(last)
    end = np.minimum(last + position + right + 1, len_k) if right >= 0 else len_k
    blocks = np.where(begin < end, -(-end // plan.block_n) - begin // plan.block_n, 0)
    return np.where(first < len_q, blocks, -1).astype(np.int32)


def _draw(ax: Any, plan: Plan, grid: npt.NDArray[np.int32], work: Any) -> None:
    """One panel: keys of every cell, below 0 without a tile; `work` gives their colours."""
    from matplotlib.colors import to_rgba_array
    from matplotlib.ticker import MaxNLocator

    rgb = work.to_rgba(np.maximum(grid, 1), bytes=True)
    rgb[grid < 0] = to_rgba_array(NOT_LAUNCHED if plan._core.has_list else EMPTY) * 255
    rows, columns = grid.shape
    tokens = plan.tile_tokens
    # More cells than pixels are averaged.
    ax.imshow(
        rgb,
        aspect="auto",
        interpolation="antialiased",
        extent=(0, columns * tokens, rows - 0.5, -0.5),
    )
    if rows <= 64 and columns <= 128:
        for at in range(1, rows):
            ax.axhline(at - 0.5, color="white", linewidth=0.6)
        for at in range(1, columns):
            ax.axvline(at * tokens, color="white", linewidth=0.6)
    _title(ax, plan, f"{plan.launched:,} work-groups, {plan.num_empty:,} empty")
    ax.set_xlabel("query token of its sequence")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    for axis in ax.xaxis, ax.yaxis:
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
