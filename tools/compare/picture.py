"""The tables of a comparison as a dot plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .table import Table

# Okabe and Ito's palette, which colour-blind readers can tell apart, with a shape for each colour
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000", "#999999")
_SHAPES = ("o", "s", "D", "^", "v", "P", "X", "*")


def save_picture(tables: Sequence[Table], path: str | Path, measure: str) -> None:
    """One panel a table, one dot for each variant and column; the bars are the standard deviation over seeds."""
    columns, names = len(tables[0].columns), list(tables[0].lines)
    width = max(4.0, 0.9 + columns * max(0.8, 0.16 * len(names) + 0.3))
    figure = Figure(figsize=(width * len(tables), 4.6), layout="constrained")
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axis, table in zip(axes, tables, strict=True):
        for number, name in enumerate(names):
            shift = (number - (len(names) - 1) / 2) * min(0.14, 0.7 / len(names))
            means, spreads = zip(*table.lines[name], strict=True)
            axis.errorbar(
                [place + shift for place in range(len(means))], [100 * mean for mean in means],
                [0 if spread != spread else 100 * spread for spread in spreads],  # nan: one seed, or the floor
                linestyle="none", marker=_SHAPES[number % len(_SHAPES)], color=_COLOURS[number % len(_COLOURS)],
                markersize=7 if number == 0 else 5.5, elinewidth=1.2, label=name,
            )  # fmt: skip
        axis.set_xticks(range(len(table.columns)), table.columns)
        axis.set_xlim(-0.5, len(table.columns) - 0.5)
        axis.set_ylim(bottom=0)
        axis.set_title(table.name)
        axis.axvline(len(table.columns) - 1.5, color="0.8", linewidth=0.8)  # before the mean
        axis.grid(axis="y", color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"{measure.capitalize()} (%), mean ± std over seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=130)
