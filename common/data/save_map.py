"""Writing what a network found on the very grid of the scan it was found in."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelWriter, PILWriter
from monai.data.folder_layout import default_name_formatter
from monai.transforms import SaveImaged
from monai.utils import get_equivalent_dtype

from common.data.dataset import DataError
from common.data.scan import load_scan
from common.data.temporary import replaced

_reasons: list[Exception] = []  # why the file at hand could not be written; MONAI says that there is no writer for it


@contextmanager
def _reason_kept() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _reasons.append(error)
        raise


class PhotographWriter(PILWriter):
    """PNG, whole or not at all."""

    @_reason_kept()
    def write(self, filename: str | os.PathLike, verbose: bool = False, **options: Any) -> None:
        """Raises OSError: see :func:`.writing`."""
        with replaced(Path(filename)) as part:
            super().write(part, verbose, **options)


class ScanGridWriter(NibabelWriter):
    """NIfTI with the header of the scan: its shape, both matrices with their codes, and its units.

    MONAI's writer keeps one matrix of them, and takes the last axis of one slice away.
    """

    def set_metadata(self, meta_dict: Any = None, resample: bool = True, **options: Any) -> None:
        self.source = str((meta_dict or {}).get("filename_or_obj", ""))

    @_reason_kept()
    def write(self, filename: str | os.PathLike, verbose: bool = False, **options: Any) -> None:
        """Raises DataError: the map has not the shape of the scan. OSError: see :func:`.writing`."""
        scan = load_scan(self.source)
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
        with replaced(Path(filename)) as part:
            nib.save(type(scan)(found, None, header), part)  # no affine: those of the header stay, with their codes


def _lower_suffix(meta: Any, saver: Any) -> dict[str, Any]:
    """As MONAI names a file, which takes ``.NII`` of ``scan.NII.GZ`` for a part of the scan's name."""
    names = default_name_formatter(meta, saver)
    file = str(names["subject"])
    return names | {"subject": file[:-7] + ".nii.gz" if file.lower().endswith(".nii.gz") else file}


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
            writer=PhotographWriter if suffix == ".png" else ScanGridWriter,
            output_name_formatter=_lower_suffix,
        )  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Raises what the writers raise."""
        _reasons.clear()
        try:
            return super().__call__(data)
        except RuntimeError as error:
            raise (_reasons[0] if _reasons else error) from None
