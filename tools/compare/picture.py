"""The tables of a comparison as dot plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.data.temporary import writing
from common.report.plain_text import in_picture, plain_text

from .table import Table

# Okabe and Ito's palette, which colour-blind readers can tell apart, with a shape for each colour
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000", "#999999")
NAN = float("nan")
_SHAPES = ("o", "s", "D", "^", "v", "P", "X", "*")


@plain_text()
def save_picture(tables: Sequence[Table], path: str | Path) -> None:
    """One panel a table, one dot for each variant and column; the bars are the standard deviation over seeds.

    Panels of one measure have one scale. More variants than there are colours get a row each, on a scale of their own.
    """
    names = list(dict.fromkeys(name for table in tables for name in table.lines))
    if len(names) > len(_COLOURS):
        return _save_rows(tables, names, path)
    across = panels_across(tables)
    down = -(-len(tables) // across)
    width = max(4.0, 0.9 + max(len(table.columns) for table in tables) * max(0.8, 0.16 * len(names) + 0.3))
    figure = Figure(figsize=(width * across, 4.6 if down == 1 else 0.6 + 3.6 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for spare in axes[len(tables) :]:
        spare.remove()
    drawn, same = {}, {}
    for place, (axis, table) in enumerate(zip(axes, tables, strict=False)):
        if table.label in same:
            axis.sharey(same[table.label])
        drawn |= _panel(axis, table, names)
        if place % across and tables[place - 1].label == table.label:
            axis.tick_params(labelleft=False)
        else:
            axis.set_ylabel(_label(table))
        same.setdefault(table.label, axis)
    for label, axis in same.items():  # after the last panel: it ends the automatic scale of all that share it
        lines = [line for table in tables if table.label == label for line in table.lines.values()]
        if not any(mean < 0 for line in lines for mean, _ in line):
            tips = [value for line in lines for mean, spread in line for value in (mean, mean + spread)]
            highest = max((tip for tip in tips if math.isfinite(tip)), default=1)
            axis.set_ylim(0, 1.05 * highest or 1)  # room for half a marker
    shown = [name for name in names if name in drawn]
    markers, texts = [drawn[name] for name in shown], [_short(name) for name in shown]
    figure.legend(markers, texts, loc="outside lower center", ncols=6, frameon=False)
    with writing(path):
        figure.savefig(path, dpi=130)


def _save_rows(tables: Sequence[Table], names: Sequence[str], path: str | Path) -> None:
    """A row for each variant, a dot for each column."""
    across = panels_across(tables)
    down = -(-len(tables) // across)
    stacked = max(len("".join(table.columns)) for table in tables) > 30  # side by side, the legend would set the width
    below = 0.25 * max(len(table.columns) for table in tables) if stacked else 0.0
    figure = Figure(figsize=(1.5 + 3.6 * across, (1.3 + 0.24 * len(names) + below) * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for spare in axes[len(tables) :]:
        spare.remove()
    for axis, table in zip(axes, tables, strict=False):
        drawn = []
        for number in range(len(table.columns)):
            means, spreads = zip(*(table.lines.get(name, [(NAN, NAN)] * len(table.columns))[number] for name in names),
                                 strict=True)  # fmt: skip
            drawn.append(axis.errorbar(
                means, range(len(names)), xerr=[0 if spread != spread else spread for spread in spreads],
                linestyle="none", marker=_SHAPES[number % len(_SHAPES)], color=_COLOURS[number % len(_COLOURS)],
                markersize=5.5, elinewidth=1.2, label=_short(table.columns[number]),
            ))  # fmt: skip
        axis.set_xlabel(_label(table))
        axis.set_title(_short(table.name))
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        ncols = 1 if stacked else len(table.columns)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": ncols}
        axis.legend(drawn, map(_short, table.columns), frameon=False, **place)
    axes[0].set_yticks(range(len(names)), [_short(name) for name in names])
    axes[0].invert_yaxis()
    with writing(path):
        figure.savefig(path, dpi=130)


def panels_across(tables: Sequence[Table]) -> int:
    """One row of up to three, two of four; else a row for each measure where the names allow it, else rows of three."""
    names = len({table.name for table in tables})
    if len(tables) == 4:
        return 2
    return names if len(tables) > 3 and names in (2, 3) else min(3, len(tables))


def _label(table: Table) -> str:
    """What the dots and bars are, in two lines where one is too long."""
    gap = "\n" if len(table.label) > 16 else " "
    return f"{table.label},{gap}mean ± std over seeds"


def _panel(axis: Axes, table: Table, names: Sequence[str]) -> dict:
    """Draw a table; returns what the legend shows."""
    drawn = {}
    for name, line in table.lines.items():
        number = names.index(name)
        shift = (number - (len(names) - 1) / 2) * min(0.14, 0.7 / len(names))
        means, spreads = zip(*line, strict=True)
        drawn[name] = axis.errorbar(
            [place + shift for place in range(len(means))], means,
            [0 if spread != spread else spread for spread in spreads],  # nan: one seed, or the floor
            linestyle="none", marker=_SHAPES[number % len(_SHAPES)], color=_COLOURS[number % len(_COLOURS)],
            markersize=7 if number == 0 else 5.5, elinewidth=1.2, label=_short(name),
        )  # fmt: skip
    columns = [fill(_short(column), 12, break_long_words=False) for column in table.columns]
    axis.set_xticks(range(len(columns)), columns)
    axis.set_xlim(-0.5, len(table.columns) - 0.5)
    axis.set_title(_short(table.name))
    axis.axvline(len(table.columns) - 1.5, color="0.8", linewidth=0.8)  # before the mean
    axis.grid(axis="y", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return drawn


def _short(name: str) -> str:
    return in_picture(name, longest=36)
