"""Scans (NIfTI) from their files, whatever capitals the suffix has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.data import NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.utils import ensure_tuple
from nibabel.openers import ImageOpener


def load_scan(file: str | os.PathLike) -> nib.Nifti1Image:
    """As ``nibabel.load``, which of ``scan.Nii`` looks for another file, ``scan.nii``.

    Raises:
        what nibabel raises of a missing or damaged file.
    """
    name = Path(file).name
    ending = name[name.lower().rfind(".nii") :][:4]
    if ending in (ending.lower(), ending.upper()):
        return nib.load(file)
    with ImageOpener(file) as opened:
        start = opened.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Image if nib.Nifti2Header.may_contain_header(start) else nib.Nifti1Image
    return kind.from_file_map({"image": nib.FileHolder(os.fspath(file))})


class ScanReader(NibabelReader):
    """MONAI's reader of NIfTI, by :func:`load_scan`."""

    def read(self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any) -> Any:
        self.filenames = ensure_tuple(data)
        scans = [correct_nifti_header_if_necessary(load_scan(file)) for file in self.filenames]
        return scans if len(scans) > 1 else scans[0]
