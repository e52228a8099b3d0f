"""``python -m tools preview BUNDLE``: the labels of a data set, drawn over its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.data.check import check_cases, read_volume
from common.data.dataset import DataError, read_dataset
from common.data.output_dir import check_output_dir
from common.data.whole_cases import scan_names
from common.report import save_overlay
from common.report.file_names import FileNames, file_name
from tools.bundles import home_of
from tools.sample import sample


def preview(bundle: str, dataset_dir: str | None = None, output: str | None = None, cases: int = 4) -> None:
    """Write a picture for each of some labelled cases and say where they are, and those of the last evaluation.

    Args:
        bundle: name of a folder in ``bundles/``.
        dataset_dir: the folder that holds ``dataset.json``; by default the bundle's sample data, generated if missing.
        output: folder for the pictures; by default one named after the data set in the bundle's ``eval/preview``.
        cases: how many, spread evenly over the labelled cases.

    Raises:
        SystemExit: with the text of the error, when there is no such bundle or the data cannot be used.
        OSError: see :func:`.check_output_dir`.
    """
    home = home_of(bundle)
    if cases < 1:
        raise SystemExit(f"cases: expected 1 or more, found {cases}")
    if dataset_dir is None and not (home / "sample_data").exists():
        sample(bundle)
    try:
        dataset = read_dataset(dataset_dir or home / "sample_data")
        labelled = dataset.training + dataset.validation
        names = scan_names([item["image"] for item in labelled])
        places = np.unique(np.linspace(0, len(labelled) - 1, cases).round().astype(int))
        check_cases([labelled[i] for i in places], dataset.labels, channels=dataset.channels)
    except DataError as error:
        raise SystemExit(str(error)) from error
    folder = check_output_dir(output or home / "eval" / "preview" / file_name(dataset.name))
    called = FileNames()
    files = [_draw(labelled[i], dataset.labels, folder / f"{called(names[i])}.png") for i in places]
    print(f"{len(files)} of {len(labelled)} labelled cases of {dataset.name}, drawn from {dataset.directory}:")
    print("\n".join(f"  {file}" for file in files))
    overlays = sorted((home / "eval").glob("overlay_*.png"))
    if overlays:
        print("predictions of the last evaluation:")
        print("\n".join(f"  {file}" for file in overlays))


def _draw(item: dict, labels: dict[int, str], file: Path) -> Path:
    image, affine = read_volume(item["image"])
    label = read_volume(item["label"])[0].reshape(image.shape[:3])
    domain = f" ({item['domain']})" if "domain" in item else ""
    save_overlay(file, image, label, None, labels, affine, f"{item['case']}{domain}: labels")
    return file
