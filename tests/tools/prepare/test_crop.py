import numpy as np
import pytest

from common.data.dataset import DataError
from tools.prepare.crop import box_around, check_crop


@pytest.mark.parametrize(("margin", "least", "box"), [
    (0, 0, [(10, 13), (2, 7), (4, 5)]),
    (4, 0, [(6, 17), (0, 11), (0, 9)]),
    (1, 8, [(7, 16), (0, 9), (0, 9)]),  # 3 of 8 lack 5: 2 on each side; 5 lack 3: 1; 1 lacks 7: 3
])
def test_box_by_hand(margin, least, box):
    label = np.zeros((20, 20, 9), int)
    label[10, 2, 4] = label[12, 6, 4] = 3
    assert [(side.start, side.stop) for side in box_around(label, margin, least)] == box


def test_other_cuts_are_refused():
    check_crop("label"), check_crop("none")
    with pytest.raises(DataError, match="crop: expected label or none, found centre"):
        check_crop("centre")
