import math

import matplotlib.figure
import pytest
from matplotlib.image import imread

from tools.compare.picture import panels_across, save_picture
from tools.compare.table import Table


def table_of(name="", label="Dice (%)", lines=None, columns=("liver", "mean")):
    lines = lines or {"ours": [(50, 10), (25, math.nan)], "copy": [(10, math.nan), (math.nan, math.nan)]}
    return Table(name, "head", label, 1, list(columns), lines, {})


@pytest.fixture
def kept(monkeypatch):
    """The figures that are saved."""
    figures, savefig = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig",
                        lambda figure, *args, **options: (figures.append(figure), savefig(figure, *args, **options)))
    return figures


@pytest.fixture
def draw(tmp_path, monkeypatch, kept):
    """Draws; returns the axes of the panels and all that was given to them."""
    drawn, errorbar = [], matplotlib.axes.Axes.errorbar

    def spy(axis, x, y, error, **options):
        drawn.append((options["label"], list(y), list(error), options["color"]))
        return errorbar(axis, x, y, error, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", spy)

    def call(*tables):
        save_picture(tables, tmp_path / "table.png")
        assert imread(tmp_path / "table.png").std() > 0.05
        return kept[-1], drawn

    return call


def test_every_variant_of_every_table_is_drawn(draw):
    figure, drawn = draw(table_of("parts3"), table_of("ep2"))
    assert [name for name, *_ in drawn] == ["ours", "copy"] * 2
    assert drawn[0][1:3] == ([50, 25], [10, 0])
    assert [axis.get_title() for axis in figure.axes] == ["parts3", "ep2"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["Dice (%), mean ± std over seeds", ""]


def test_panels_of_one_measure_share_a_scale_that_shows_all(draw):
    high, far = {"ours": [(90, 0), (90, 0)]}, {"ours": [(900, 0), (-90, 0)]}
    figure, _ = draw(table_of("a"), table_of("b", lines=high), table_of("a", "Scatter", far), table_of("b", "Scatter"))
    left, right, below, beside = figure.axes
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[0] == 0 and left.get_ylim()[1] > 90
    assert below.get_ylim() == beside.get_ylim() and below.get_ylim()[0] < -90 and below.get_ylim()[1] > 900
    assert [bool(axis.get_ylabel()) for axis in figure.axes] == [True, False] * 2


def test_the_highest_marker_is_whole_and_long_names_take_lines(draw):
    lines = {"ours": [(80, 1), (80, math.nan)], "copy": [(79.9, 0), (math.nan, math.nan)]}
    figure, _ = draw(table_of(lines=lines, columns=("anterior hippocampus", "mean")))
    (axis,) = figure.axes
    assert axis.get_ylim() == pytest.approx((0, 1.05 * 81))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["anterior\nhippocampus", "mean"]


def test_a_variant_keeps_its_colour_where_the_floor_is_missing(draw):
    lines = {"theirs": [(5, 1), (6, 1)]}
    both = {"ours": [(5, 1), (6, 1)], "theirs": [(5, 1), (6, 1)], "copy": [(5, 1), (6, 1)]}
    figure, drawn = draw(table_of(label="ASD (px)", lines=lines), table_of(lines=both))
    colours = [(name, colour) for name, *_, colour in drawn]
    assert colours[0][0] == "theirs" and colours[0] == colours[2] and len({colour for _, colour in colours}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["theirs", "ours", "copy"]


@pytest.mark.parametrize("names, across", [
    (["a"], 1), (["a", "b"], 2), (["a", "b", "c"], 3), (["", "", ""], 3), (["a", "b", "a"], 3),
    (["a", "b", "a", "b"], 2), (["a", "b", "c", "a", "b", "c"], 3), (["", "", "", ""], 2), (list("abcde"), 3),
])  # fmt: skip
def test_more_than_three_panels_make_rows(draw, names, across):
    tables = [table_of(name, f"measure {i // 2}") for i, name in enumerate(names)]
    assert panels_across(tables) == across
    figure, _ = draw(*tables)
    tops = {round(axis.get_position().y1, 2) for axis in figure.axes}
    assert len(figure.axes) == len(names) and len(tops) == math.ceil(len(names) / across)


def test_many_variants_get_a_row_each(tmp_path, kept):
    lines = {f"setting {i}": [(50 + i, 2), (40 + i, math.nan)] for i in range(9)}
    few = {"setting 3": [(7, 1), (8, 1)]}
    save_picture([table_of("eval", lines=lines), table_of("eval", "Scatter", few)], tmp_path / "table.png")
    left, right = kept[0].axes
    assert [text.get_text() for text in left.get_yticklabels()] == list(lines)
    dots = [list(container.lines[0].get_xdata()) for container in left.containers]
    assert dots == [[50 + i for i in range(9)], [40 + i for i in range(9)]]
    found = right.containers[1].lines[0].get_xdata()
    assert found[3] == 8 and all(math.isnan(value) for i, value in enumerate(found) if i != 3)
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first variant on top
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["liver", "mean"]


def test_long_column_names_leave_the_rows_their_width(tmp_path, kept):
    lines = {f"setting {i}": [(50 + i, 2)] * 3 for i in range(9)}
    columns = ["anterior hippocampus", "posterior hippocampus", "mean"]
    tables = [table_of("", f"measure {i}", lines, columns) for i in range(4)]
    save_picture(tables, tmp_path / "table.png")
    assert all(axis.get_position().width > 0.25 for axis in kept[0].axes)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variants", [2, 9])
@pytest.mark.parametrize(
    "name", ["$x^{$", "$a$", "_hidden", "two\nlines", "nul\0", "\u202eevil", "\U0001f600 כבד", "x" * 300], ids=ascii
)
def test_names_are_text(tmp_path, kept, variants, name):
    """No formula, and no warning of letters that the font lacks; side by side, and in rows."""
    lines = {name: [(50, 1), (25, 1)]} | {f"v{i}": [(10, 1), (20, 1)] for i in range(variants)}
    save_picture([table_of(name, lines=lines, columns=(name, "mean"))], tmp_path / "table.png")
    shown = name.replace("\n", " ").replace("\0", "\ufffd").replace("\u202e", "\ufffd")
    assert kept[0].axes[0].get_title()[:30] == shown[:30]
    legends = [*kept[0].legends, *(axis.get_legend() for axis in kept[0].axes if axis.get_legend())]
    assert shown[:30] in [text.get_text()[:30] for legend in legends for text in legend.get_texts()]
