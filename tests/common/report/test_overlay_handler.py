"""Pictures of an inference: one for each image, of the file itself."""

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine
from matplotlib.image import imread
from monai.data import MetaTensor
from PIL import Image

from common.report import OverlayHandler, overlay_handler, save_overlay


def test_a_picture_for_each_volume(tmp_path):
    cases = []
    for name in ("a", "b"):
        file = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(np.random.default_rng(0).random((12, 14, 5), np.float32), np.diag([1, 1, 4, 1])), file)
        cases.append({"image": MetaTensor(torch.zeros(1, 4, 4, 5), meta={"filename_or_obj": str(file)})})
    prediction = torch.zeros(1, 12, 14, 5)
    prediction[:, 3:8, 4:9, 1:4] = 2

    def step(engine, batch):
        engine.state.batch = cases
        return [{"pred": prediction}, {"pred": prediction}]

    engine = Engine(step)
    OverlayHandler(str(tmp_path / "pictures"), {2: "spleen"}).attach(engine)
    engine.run([0])
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["found_a.png", "found_b.png"]


def test_a_picture_for_each_photograph(tmp_path, monkeypatch):
    """Predictions come as MONAI reads photographs: with x first."""
    drawn = []
    monkeypatch.setattr(overlay_handler, "save_overlay", lambda *args: (drawn.append(args), save_overlay(*args)))
    Image.fromarray(np.full((20, 30, 3), (200, 0, 0), np.uint8)).save(tmp_path / "eye.1.png")
    prediction = torch.zeros(1, 30, 20)
    prediction[:, 12:28, 5:9] = 1

    def step(engine, batch):
        engine.state.batch = [{"image": MetaTensor(torch.zeros(3, 8, 8),
                                                   meta={"filename_or_obj": str(tmp_path / "eye.1.png")})}]
        return [{"pred": prediction}]

    engine = Engine(step)
    OverlayHandler(str(tmp_path), {1: "disc"}).attach(engine)
    engine.run([0])
    assert np.argwhere(drawn[0][3]).min(0).tolist() == [5, 12, 0] and drawn[0][3].shape == (20, 30, 1)
    picture = imread(tmp_path / "found_eye.1.png")
    assert picture.shape[1] > picture.shape[0] * 0.9  # wider than high, as the photograph, but for the legend
    assert (picture[..., 0] > 0.9).mean() > 0.3  # red
