"""Pictures of an inference: one for each volume, of the file itself."""

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from common.report import OverlayHandler


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
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["overlay_a.png", "overlay_b.png"]
