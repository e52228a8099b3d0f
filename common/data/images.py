"""The images that an inference is asked to segment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .check import check_cases
from .dataset import read_dataset, refuse_other_kinds
from .errors import DataError
from .items import file_stem
from .nnunet import channels_apart
from .paths import as_path
from .preprocessing import Preprocessing

SUFFIXES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg")


def list_images(
    dataset_dir: str, preprocessing: Preprocessing, images: str | Sequence[str] | None = None
) -> list[dict[str, str]]:
    """Checked items ``{"image", "case"}`` of ``images`` (a file, a folder, a list).

    Without ``images`` they are those of dataset.json's ``validation`` and ``test``.

    Args:
        preprocessing: of the model: the channels and kinds of its images.

    Raises:
        DataError: no image, those of the other kind, damaged ones, channels in files of their own, or several of one
            file name, whose label maps would take each other's place; all of them in one error.
    """
    if images is None:
        dataset = read_dataset(dataset_dir)
        cases = [{"image": item["image"], "case": item["case"]} for item in dataset.validation + dataset.test]
    else:
        several = isinstance(images, (list, tuple))
        paths = [as_path(image, "images") for image in (images if several else [images])]
        folders = {path: _images_in(path) for path in paths if path.is_dir()}
        if problems := [line for listed in folders.values() for line in channels_apart(listed)]:
            raise DataError.of(problems, ", ".join(map(str, folders)))
        files = [file for path in paths for file in folders.get(path, [path])]
        cases = [{"image": str(file), "case": file_stem(file.name)} for file in files]
    if not cases:
        raise DataError(
            f"no image to segment: expected NIfTI, PNG or JPEG files in {images or dataset_dir}; set images or "
            "dataset_dir."
        )
    files = [case["image"] for case in cases]
    refuse_other_kinds(files, preprocessing.kinds)
    _refuse_equal_names(files)
    check_cases(cases, {}, channels=preprocessing.channels, listed_in="dataset.json" if images is None else "`images`")
    return cases


def _refuse_equal_names(files: Sequence[str]) -> None:
    same: dict[str, list[str]] = {}
    for file in files:
        same.setdefault(file_stem(Path(file).name), []).append(file)
    found = [f"{name}: {', '.join(several)}" for name, several in same.items() if len(several) > 1]
    if found:
        raise DataError(
            f"images of one file name, whose label maps would take each other's place: {'; '.join(found)}. Segment "
            "them one after the other, each with an output_dir of its own, or rename them."
        )


def _images_in(folder: Path) -> list[Path]:
    # hidden ones too are of those suffixes: `._scan.nii.gz` of archives and Macs
    return [file for file in sorted(folder.glob("[!.]*")) if file.name.lower().endswith(SUFFIXES)]
