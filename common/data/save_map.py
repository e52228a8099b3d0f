"""Writing what a network found on the very grid of the scan it was found in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelWriter
from monai.transforms import SaveImaged
from monai.utils import get_equivalent_dtype

from common.data.dataset import DataError
from common.data.temporary import temporary_path


class ScanGridWriter(NibabelWriter):
    """NIfTI with the header of the scan: its shape, both matrices with their codes, and its units.

    MONAI's writer keeps one matrix of them, and takes the last axis of one slice away.
    """

    def set_metadata(self, meta_dict: Any = None, resample: bool = True, **options: Any) -> None:
        self.source = str((meta_dict or {}).get("filename_or_obj", ""))

    def write(self, filename: str | os.PathLike, verbose: bool = False, **options: Any) -> None:
        """Raises DataError: the map has not the shape of the scan."""
        scan = nib.load(self.source)
        found = np.asarray(self.data_obj)[..., 0].astype(self.output_dtype)
        if found.shape != scan.shape[:3]:
            raise DataError(f"{self.source}: expected a map of the scan's shape {scan.shape[:3]}, found {found.shape}; "
                            "leave out overrides of the preprocessing and of the postprocessing.")  # fmt: skip
        header = scan.header.copy()
        header.set_data_shape(found.shape)
        header.set_data_dtype(found.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # the scan's window would hide the labels in a viewer
        header["descrip"] = b""
        target = Path(filename)
        part = temporary_path(target)
        try:
            nib.save(type(scan)(found, None, header), part)  # no affine: those of the header stay, with their codes
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


class SaveMapd(SaveImaged):
    """Write ``(1, *spatial)`` as ``<scan>_<postfix>`` into ``output_dir``: a scan's by :class:`ScanGridWriter`.

    Args:
        keys: what to write, with the meta data of the scan.
        output_dir, postfix: see above.
        suffix: ``.nii.gz``, or ``.png`` for photographs.
        dtype: of the file, numpy's or torch's.
    """

    def __init__(
        self, keys: Any, output_dir: str, suffix: str = ".nii.gz", postfix: str = "seg", dtype: Any = np.uint8
    ) -> None:
        super().__init__(
            keys, output_dir=output_dir, output_postfix=postfix, output_ext=suffix,
            output_dtype=get_equivalent_dtype(dtype, np.ndarray), resample=False,
            squeeze_end_dims=suffix == ".png", separate_folder=False,
            writer=None if suffix == ".png" else ScanGridWriter,
        )  # fmt: skip
