import math

import matplotlib.figure
from matplotlib.image import imread

from tools.compare.picture import save_picture
from tools.compare.table import Table


def test_every_variant_of_every_table_is_drawn(tmp_path, monkeypatch):
    drawn = []
    errorbar = matplotlib.axes.Axes.errorbar

    def spy(axis, x, y, error, **options):
        drawn.append((options["label"], list(y), list(error)))
        return errorbar(axis, x, y, error, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", spy)
    lines = {"ours": [(0.5, 0.1), (0.25, math.nan)], "copy": [(0.1, math.nan), (math.nan, math.nan)]}
    save_picture([Table("parts3", ["liver", "mean"], lines, {}), Table("ep2", ["liver", "mean"], lines, {})],
                 tmp_path / "table.png", "dice")
    assert [name for name, *_ in drawn] == ["ours", "copy"] * 2
    assert drawn[0][1:] == ([50, 25], [10, 0])
    assert imread(tmp_path / "table.png").std() > 0.05
