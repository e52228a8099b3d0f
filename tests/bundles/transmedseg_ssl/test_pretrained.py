"""The overlay with the ImageNet encoder: it trains, evaluates and segments, and model.json says what it is."""

import warnings

import numpy as np

from common.engine import read_model

SMALL = {"iterations_per_epoch": 1, "max_epochs": 1, "val_interval": 1, "patch_size": [32, 32], "batch_size": 4,
         "warmup_steps": 0, "pictures": 0, "distances": False}  # fmt: skip


def test_it_trains_and_is_rebuilt_from_what_it_left(tiny_bundle, tmp_path, restored):
    bundle = tiny_bundle("transmedseg_ssl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the weights are not installed
        bundle.run(["train", "pretrained"], tmp_path, **SMALL)
    record = read_model(tmp_path / "models" / "model.pt")
    assert record["network"]["class"].endswith("LiteUNet") and "weights" not in record["network"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*ImageNet.*")  # a model that is loaded needs none
        bundle.evaluate(tmp_path)
    assert np.isfinite([float(row["dice"]) for row in bundle.cases(tmp_path)]).all()
