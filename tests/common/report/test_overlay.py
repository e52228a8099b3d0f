import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from common.report import overlay, save_overlay
from common.report.overlay import _checked, _choose, _figure, _headline, _panels, save_case_overlay

# A patient in RAS+, 1 x 1 x 4 mm: a bright sheet on the left, a label at the back, higher slices brighter.
SIZE = (20, 30, 6)


def patient():
    image, label = np.zeros(SIZE), np.zeros(SIZE, dtype=int)
    image += np.arange(SIZE[2]) * 2
    image[2, :, :] = 100  # axis 0 runs to the right: low index is the patient's left
    label[:, 3, 1:5] = 1  # low index of axis 1 is the back
    return image, label, np.diag([1.0, 1.0, 4.0, 1.0])


def reorient(array, affine, codes):
    picture = nib.Nifti1Image(array.astype(np.float32), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    turned = picture.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned.affine


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "RPI", "ASR", "SLP"])
def test_right_of_the_patient_is_on_the_left_and_front_is_up_whatever_the_file(codes):
    image, label, affine = patient()
    (image, turned), (label, _) = reorient(image, affine, codes), reorient(label, affine, codes)
    panels, aspect = _panels(image[None], [None, label], turned, 4)
    name, picture, truth, prediction = panels[0]
    assert [panel[0] for panel in panels] == ["axial 2/6", "axial 3/6", "axial 4/6", "axial 5/6"]  # feet to head
    assert aspect == 1 and truth is None
    assert picture.shape == (SIZE[1], SIZE[0])
    assert set(np.flatnonzero(picture.mean(axis=0) > 0.9)) == {SIZE[0] - 1 - 2}  # the patient's left, on the right
    assert set(np.flatnonzero(prediction.any(axis=1))) == {SIZE[1] - 1 - 3}  # the back, below
    assert panels[0][1].min() <= panels[-1][1].min()


def test_cuts_across_thick_slices_with_the_head_up_and_in_proportion():
    image, label, _ = patient()
    label[:] = 0
    label[:, 3, 5] = 1  # top of the head
    panels, aspect = _panels(image[None], [label, label], np.diag([1.0, 6.0, 3.0, 1.0]), 4)
    assert [panel[0] for panel in panels] == ["coronal 27/30"]  # counted from the front
    assert aspect == 3 and set(np.flatnonzero(panels[0][2].any(axis=1))) == {0}
    panels, aspect = _panels(image[None], [label, label], np.diag([6.0, 2.0, 3.0, 1.0]), 4)
    assert panels[0][0].startswith("sagittal") and aspect == 1.5
    assert set(np.flatnonzero(panels[0][2].any(axis=0))) == {SIZE[1] - 1 - 3}  # front on the left


def test_slices_are_spread_over_what_truth_and_prediction_cover():
    truth, prediction = np.zeros((4, 4, 40), dtype=int), np.zeros((4, 4, 40), dtype=int)
    truth[..., 10:20], prediction[..., 20:30] = 1, 2
    truth[0, 0, 35] = 1  # less than a tenth of the largest area
    assert _choose([truth, prediction], 2, 4) == [12, 17, 22, 27]
    assert _choose([truth * 0, prediction * 0], 2, 2) == [10, 30]
    assert _choose([None, prediction], 2, 40) == list(range(20, 30))


def test_one_structure_has_a_colour_for_truth_and_one_for_prediction(tmp_path):
    truth, prediction = np.zeros((40, 40), dtype=int), np.zeros((40, 40), dtype=int)
    truth[5:15, 5:15], prediction[25:35, 25:35] = 1, 1
    save_overlay(tmp_path / "new" / "a.png", np.zeros((40, 40)), truth, prediction, {1: "disc"}, title="a")
    picture = imread(tmp_path / "new" / "a.png")[..., :3]
    rows, columns = picture.shape[:2]
    middle = picture[int(rows * 0.2) : int(rows * 0.85)]
    green = np.argwhere((middle[..., 1] > 0.7) & (middle[..., 0] < 0.4))
    pink = np.argwhere((middle[..., 0] > 0.8) & (middle[..., 1] < 0.4))
    assert len(green) > 50 and len(pink) > 50
    assert (green.mean(axis=0) < pink.mean(axis=0)).all()  # drawn as the array is: first axis down


def test_colour_photographs_several_structures_and_no_truth(tmp_path):
    photograph = np.random.default_rng(0).uniform(0, 255, (3, 30, 40))
    labels = np.zeros((30, 40), dtype=int)
    labels[5:20, 5:20], labels[:4, 30:] = 1, 2
    save_overlay(tmp_path / "a.png", photograph, None, labels, {1: "disc", 2: "cup"})
    picture = imread(tmp_path / "a.png")
    assert picture.shape[1] >= picture.shape[0] * 0.8 and picture[..., :3].std() > 0.1


def test_a_photograph_as_it_is_read_is_drawn_first_axis_down():
    photograph = np.random.default_rng(0).uniform(0, 1, (20, 30, 1, 3))
    photograph[0, 0], photograph[1, 1] = 0, 1  # the whole range, so that nothing is stretched
    truth = np.zeros((20, 30, 1), dtype=int)
    truth[2:5, 20:29] = 1
    for affine in (np.eye(4), None):
        panels, aspect = _panels(*_checked(photograph, truth, None), affine, 5)
        ((name, picture, drawn, none),) = panels
        assert name == "" and aspect == 1 and none is None
        np.testing.assert_allclose(picture, photograph[:, :, 0], atol=1e-6)
        np.testing.assert_array_equal(drawn, truth[..., 0])
    grey, _ = _panels(*_checked(photograph[..., 0], None, truth), np.eye(4), 5)
    assert grey[0][1].shape == (20, 30)
    # one slice with a place in the patient is turned as all volumes are
    turned, _ = _panels(*_checked(photograph[..., 0], None, truth), np.diag([0.5, 0.5, 4, 1]), 5)
    assert turned[0][0] == "axial 1/1" and turned[0][1].shape == (30, 20)


def contours(figure):
    """The paths drawn, by colour: number of closed lines, and their extent in columns and rows."""
    found = {}
    for collection in figure.axes[0].collections:
        lines = [line for line in collection.get_paths()[0].to_polygons(closed_only=False) if len(line)]
        found[to_hex(collection.get_edgecolor()[0])] = [(np.ptp(line, axis=0) + 0.5).astype(int).tolist()
                                                        for line in lines]
    return found


def test_a_structure_is_drawn_without_the_border_that_it_shares_with_one_inside():
    label = np.zeros((40, 40), dtype=int)
    label[5:35, 5:35], label[10:20, 10:20], label[25:30, 25:30] = 1, 2, 0  # rim, cup, and a hole that is background
    panels = [("", np.zeros((40, 40)), label, None)]
    figure = _figure(panels, 1.0, {1: "rim", 2: "cup"}, [])
    rim, cup = contours(figure).values()
    assert sorted(rim) == [[5, 5], [30, 30]] and cup == [[10, 10]]
    (rim,) = contours(_figure(panels, 1.0, {1: "rim"}, [])).values()  # the cup is not drawn: its border is kept
    assert sorted(rim) == [[5, 5], [10, 10], [30, 30]]


def test_long_names_fit_the_width_of_the_picture(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    names = {1: "optic disc rim (the disc without the cup)", 2: "optic cup"}
    save_overlay(tmp_path / "a.png", np.zeros((30, 30)), np.eye(30), np.eye(30), names)
    save_overlay(tmp_path / "b.png", np.zeros((30, 30, 9)), np.ones((30, 30, 9)), None, {1: "rim", 2: "cup"})
    for figure in figures:
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


def test_headline():
    assert _headline("a", {"liver": 0.91234, "spleen": float("nan")}) == "a   Dice: liver 0.912, spleen absent"
    assert _headline("case_1", None) == "case_1"


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit"):
        save_overlay("never.png", np.zeros((4, 4)), np.zeros((4, 5)), np.zeros((4, 4)), {1: "a"})


def test_of_two_channels_or_more_than_three_the_first_is_drawn(tmp_path):
    """In front or behind."""
    image, label = np.random.default_rng(0).random((5, 6, 8, 7)), np.ones((6, 8, 7))
    for name, shown in (("one", image[:1]), ("two", image[:2]), ("five", np.moveaxis(image, 0, -1))):
        save_overlay(tmp_path / f"{name}.png", shown, None, label, {1: "box"})
    one, two, five = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "five"))
    assert one == two == five


@pytest.mark.parametrize("shape", [(3, 6, 8), (1, 6, 8, 4)])
def test_a_whole_case(tmp_path, monkeypatch, shape):
    """Photographs come with x first."""
    calls, save = [], overlay.save_overlay
    monkeypatch.setattr(overlay, "save_overlay", lambda *args: (calls.append(args), save(*args)))
    native, label = torch.rand(shape), torch.zeros(shape[1:], dtype=torch.uint8)
    label[1:4, 2:6] = 1
    found = label.numpy().copy()
    found[1] = 0
    case = {"native": native, "label": label, "affine": None if len(shape) == 3 else np.diag([1.0, 1.0, 3.0, 1.0]),
            "case": "case 7", "scan": "7 early"}  # fmt: skip
    save_case_overlay(tmp_path / "early.png", case, found, {1: "box"}, {"box": 0.8})
    [(path, image, truth, prediction, labels, affine, title, dice)] = calls
    assert (path.name, title, dice, labels) == ("early.png", "case 7, 7 early", {"box": 0.8}, {1: "box"})
    assert path.stat().st_size > 5000
    turned = (lambda array: array.swapaxes(-1, -2)) if len(shape) == 3 else (lambda array: array)
    assert np.array_equal(image, turned(native.numpy()))
    assert np.array_equal(truth, turned(label.numpy())) and np.array_equal(prediction, turned(found))
    assert affine is case["affine"]


HOSTILE = (
    "$x^{$", "a$_{b$", "$x$ and $y$", "_hidden", "\\frac{1}{2}", "two\nlines\tand\r", "nul\0", "\u202eevil", "\ud83d",
    "\U0001f600 \u05db\u05d1\u05d3 \u0643\u0628\u062f", "e\u0301" + "\u0300" * 20, "x" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_are_text_whatever_they_are(tmp_path, monkeypatch, name):
    """No formula of matplotlib's, which fails at a half one; no warning of letters that the font lacks."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4], mask[5:7] = 1, 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = np.random.default_rng(0).random((8, 8))
        save_overlay(tmp_path / "a.png", image, mask, mask, {1: name, 2: "b"}, title=name, dice={name: 1.0})
    assert (tmp_path / "a.png").stat().st_size > 1000
    (figure,) = figures
    texts = [figure.get_suptitle().replace(r"\$", "$"), *(text.get_text() for text in figure.legends[0].get_texts())]
    assert len(texts) == 5 and all("\n" not in text and text.isprintable() for text in texts)
    if name.isprintable() and len(name) <= 80:
        assert texts[0] == f"{name}   Dice: {name} 1.000" and texts[1] == name
