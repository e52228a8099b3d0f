import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from common.report import save_overlay
from common.report.overlay import _choose, _headline, _panels

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


def test_headline():
    assert _headline("a", {"liver": 0.91234, "spleen": float("nan")}) == "a   Dice: liver 0.912, spleen absent"
    assert _headline("case_1", None) == "case_1"


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit"):
        save_overlay("never.png", np.zeros((4, 4)), np.zeros((4, 5)), np.zeros((4, 4)), {1: "a"})
