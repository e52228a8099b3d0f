import json
import sys

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from common.data.write import Case, write_dataset
from tools import bundles
from tools.preview import preview
from tools.sample import sample

GENERATOR = """
import numpy as np
from common.data import Case, write_dataset

def generate_sample_data(directory, seed=0):
    label = np.zeros((12, 12, 4), np.uint8)
    label[2:6, 2:6, 1:3], label[7:10, 7:10, 1:3] = 1, 2
    cases = [Case(f"c{i}", np.random.default_rng(i).integers(0, 99, label.shape) + 50 * label, label) for i in range(5)]
    write_dataset(directory, "tiny", {"0": "MRI"}, {1: "liver", 2: "spleen"}, training=cases[:4], validation=cases[4:])
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A bundle with a generator of sample data."""
    home = tmp_path / "bundles" / "tiny_preview"
    (home / "configs").mkdir(parents=True)
    (home / "tiny_preview").mkdir()
    (home / "tiny_preview" / "__init__.py").touch()
    (home / "configs" / "train.json").touch()
    (home / "tiny_preview" / "sample.py").write_text(GENERATOR)
    monkeypatch.setattr(bundles, "BUNDLES", home.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield home
    for name in ("tiny_preview", "tiny_preview.sample"):
        sys.modules.pop(name, None)


def test_sample_data_is_generated_once_and_drawn(home, capsys):
    preview("tiny_preview")
    out = capsys.readouterr().out
    folder = home / "eval" / "preview" / "tiny"
    assert "4 of 5 labelled cases of tiny" in out and str(home / "sample_data") in out
    assert sorted(file.stem for file in folder.glob("*.png")) == ["c0", "c1", "c3", "c4"]  # spread evenly
    assert all(f"  {file}\n" in out for file in folder.glob("*.png"))
    before = (home / "sample_data" / "dataset.json").stat().st_mtime_ns
    preview("tiny_preview", cases=9)
    assert "5 of 5" in capsys.readouterr().out
    assert (home / "sample_data" / "dataset.json").stat().st_mtime_ns == before


def test_the_labels_are_in_the_picture(home, tmp_path):
    preview("tiny_preview", output=str(tmp_path / "out"), cases=1)
    with_label = imread(tmp_path / "out" / "c0.png")[..., :3]
    coloured = (np.ptp(with_label, axis=2) > 0.3)[: len(with_label) * 3 // 4]  # the legend is below
    assert coloured.any()
    for file in (home / "sample_data" / "labels").iterdir():
        label = nib.load(file)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), file)
    with pytest.warns(UserWarning, match="background only"):
        preview("tiny_preview", output=str(tmp_path / "out"), cases=1)
    without = imread(tmp_path / "out" / "c0.png")[..., :3]
    assert not (np.ptp(without, axis=2) > 0.3)[: len(without) * 3 // 4].any()


def test_every_image_of_a_case_has_a_picture(home, tmp_path):
    preview("tiny_preview", output=str(tmp_path / "out"))
    file = home / "sample_data" / "dataset.json"
    dataset = json.loads(file.read_text())
    for item in dataset["training"]:
        item["case"] = "patient"
    file.write_text(json.dumps(dataset))
    preview("tiny_preview", output=str(tmp_path / "out"), cases=9)
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_pictures_of_the_last_evaluation_are_named(home, capsys):
    preview("tiny_preview", cases=1)
    assert "last evaluation" not in capsys.readouterr().out
    (home / "eval" / "overlay_c4.png").touch()
    preview("tiny_preview", cases=1)
    assert str(home / "eval" / "overlay_c4.png") in capsys.readouterr().out


def test_a_colour_volume_and_one_of_two_channels(home, tmp_path):
    preview("tiny_preview", cases=1)
    file = home / "sample_data" / "dataset.json"
    for channels in (3, 2):
        for image in (home / "sample_data" / "images").iterdir():
            nib.save(nib.Nifti1Image(np.random.default_rng(0).random((12, 12, 4, channels)), np.eye(4)), image)
        modality = ", ".join(f'"{i}": "x"' for i in range(channels))
        text = file.read_text()
        start, end = text.index('"modality"'), text.index("}", text.index('"modality"'))
        file.write_text(f'{text[:start]}"modality": {{{modality}{text[end:]}')
        preview("tiny_preview", output=str(tmp_path / str(channels)), cases=2)
        assert len(list((tmp_path / str(channels)).glob("*.png"))) == 2


def test_photographs_in_colour_and_in_grey(home, tmp_path):
    colour, label = np.full((20, 30, 3), (0, 200, 0), np.uint8), np.zeros((20, 30), np.uint8)
    colour[:2], label[5:15, 5:15] = 255, 1  # white: the whole range
    colour[2:4] = 0
    cases = [Case("green", colour, label, domain="east"), Case("grey", colour[..., 0], label, domain="west")]
    write_dataset(tmp_path / "set", "eyes", {"0": "photograph"}, {1: "disc"}, training=cases)
    preview("tiny_preview", str(tmp_path / "set"), str(tmp_path / "out"))
    green, grey = (imread(tmp_path / "out" / f"{name}.png")[..., :3] for name in ("green", "grey"))
    assert ((green[..., 1] - green[..., 0]) > 0.6).mean() > 0.2
    coloured = (np.ptp(grey, axis=2) > 0.3).mean()
    assert 0 < coloured < 0.1  # the contour alone
    assert green.shape[1] > green.shape[0]  # first axis down: wider than high
    (tmp_path / "set" / "images" / "grey.png").write_bytes(b"")
    with pytest.raises(SystemExit, match="grey.png: expected a readable image"):
        preview("tiny_preview", str(tmp_path / "set"), str(tmp_path / "out2"))


@pytest.mark.parametrize("options, message", [
    ({"bundle": "tiny"}, "expected one of tiny_preview, found tiny"),
    ({"bundle": "tiny_preview", "cases": 0}, "cases: expected 1 or more, found 0"),
    ({"bundle": "tiny_preview", "dataset_dir": "/nowhere"}, "/nowhere: expected the folder of a data set"),
])  # fmt: skip
def test_what_cannot_be_drawn_ends_in_a_plain_message(home, options, message):
    with pytest.raises(SystemExit, match=message):
        preview(**options)


def test_a_damaged_case_is_named(home):
    sample("tiny_preview")
    (home / "sample_data" / "images" / "c0.nii.gz").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="c0"):
        preview("tiny_preview", cases=1)
