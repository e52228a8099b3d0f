"""What a scan's header says of its place in space, where it says it doubtfully."""

from __future__ import annotations

from collections.abc import Iterator

import nibabel as nib
import numpy as np

UNITS = ("mm", "unknown")  # whose numbers are millimetres; most files that say nothing mean them
TOLERANCE = 0.1  # of a corner's place, in the smallest voxel edge
SHEAR = 0.01  # cosine of two axes that should be at right angles


def refused(scan: nib.Nifti1Image) -> Iterator[tuple[str, str, str]]:
    """What a scan cannot be used with: what was expected, what was found, what to do."""
    unit = scan.header.get_xyzt_units()[0]
    if unit not in UNITS:
        yield ("a spacing in millimetres", f"the unit {unit}",
               "convert it: scale both matrices and the spacing of the header, and set its unit to mm")  # fmt: skip


def doubted(scan: nib.Nifti1Image) -> Iterator[tuple[str, str, str]]:
    """What is used as it is, with a warning: what was expected, what was found, what is done."""
    header = scan.header
    codes = int(header["qform_code"]), int(header["sform_code"])
    if codes == (0, 0):
        yield ("an orientation", "none (qform_code and sform_code are 0)",
               "the first axis is taken to run to the left; if it does not, convert the images again")  # fmt: skip
    if min(codes) > 0:
        apart = _corners(scan.shape, header.get_qform()) - _corners(scan.shape, header.get_sform())
        furthest, edge = np.linalg.norm(apart, axis=1).max(), min(nib.affines.voxel_sizes(scan.affine))
        if furthest > TOLERANCE * edge:
            yield ("qform and sform of one place", f"corners that lie {furthest:.3g} mm apart",
                   "the sform is used; label maps keep both, and lie on the scan for a reader of either")  # fmt: skip
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    cosine = np.abs(axes.T @ axes - np.eye(3)).max()
    if cosine > SHEAR:
        yield ("axes at right angles", f"a shear (cosine {cosine:.2g})", "distances are measured as if there were none")


def _corners(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    lengths = (*shape, 1, 1)[:3]  # a file may have fewer axes
    places = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in lengths], indexing="ij"), axis=-1).reshape(-1, 3)
    return nib.affines.apply_affine(affine, places)
