"""What archives of a Mac leave beside every file is no scan: in no recipe."""

import shutil

import pytest

from tools.prepare import RECIPES

LAYOUTS = {
    "acdc": ["patient001/Info.cfg", "patient001/patient001_frame01.nii.gz", "patient001/patient001_frame01_gt.nii.gz"],
    "brats": ["BraTS19_TCIA_1/BraTS19_TCIA_1_flair.nii.gz", "BraTS19_TCIA_1/BraTS19_TCIA_1_seg.nii.gz"],
    "chaos": ["1/T2SPIR/DICOM_anon/IMG-1.dcm", "1/T2SPIR/Ground/IMG-1.png"],
    "fundus": ["Domain1/train/ROIs/image/a.png", "Domain1/train/ROIs/mask/a.png"],
    "la": ["A/lgemri.nrrd", "A/laendo.nrrd"],
    "mscmr": ["patient1_C0.nii.gz", "patient1_C0_manual.nii.gz"],
    "pancreas": ["PANCREAS_0001/1.dcm", "label0001.nii.gz"],
    "prostate": ["UCL/Case01.nii.gz", "UCL/Case01_segmentation.nii.gz"],
    "synapse": ["img/img0001.nii.gz", "label/label0001.nii.gz"],
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_they_are_passed_over(tmp_path, recwarn, name):
    for file in LAYOUTS[name]:
        (tmp_path / "plain" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / file).write_text("ED: 1\nES: 1\n")
    shutil.copytree(tmp_path / "plain", tmp_path / "mac")
    for file in LAYOUTS[name]:
        folder, own = (tmp_path / "mac" / file).parent, (tmp_path / "mac/__MACOSX" / file).parent
        own.mkdir(parents=True, exist_ok=True)
        for place in (folder / f"._{(tmp_path / file).name}", own / f"._{(tmp_path / file).name}", folder / ".DS_Store",
                      own / (tmp_path / file).name):  # fmt: skip
            place.touch()
    plain, mac = (RECIPES[name].find(tmp_path / kind) for kind in ("plain", "mac"))
    assert plain[0], plain[1]
    assert [str(scan).replace("/mac/", "/plain/") for scan in mac[0]] == [str(scan) for scan in plain[0]]
    assert [line.replace("/mac/", "/plain/") for line in mac[1]] == plain[1]
