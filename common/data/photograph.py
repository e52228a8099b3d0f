"""Photographs: PNG and JPEG files, read as volumes of one slice."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

__all__ = ["FormatError", "is_photograph", "misfit", "read_photograph", "unlike_voxels", "write_png"]

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
EXIF_ORIENTATION = 0x0112


class FormatError(ValueError):
    """A file that is whole, but of a kind that is not read: what was found, and what to do."""

    def __init__(self, found: str, todo: str) -> None:
        super().__init__(f"{found}; {todo}")
        self.found, self.todo = found, todo


def is_photograph(file: str | os.PathLike) -> bool:
    """Whether the name is that of a photograph."""
    return str(file).lower().endswith(SUFFIXES)


def read_photograph(file: str | os.PathLike) -> np.ndarray:
    """The pixels of a file, first axis down: a palette gives its indices, an alpha channel without effect is left out.

    Shape:
        grey ``(H, W, 1)`` of 8 or 16 bits, colour ``(H, W, 1, 3)`` of 8 bits.

    Raises:
        FormatError: the file holds something else. A damaged file raises what Pillow raises.
    """
    with Image.open(file, formats=FORMATS) as image:
        if not image.tile:
            raise OSError("the file holds no pixels")
        bits16 = "16" in str(image.tile[0][3])  # what the file holds: Pillow would cut colours to 8 bits silently
        image.load()
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            raise FormatError("an EXIF orientation that turns or mirrors it", "save it upright, without that entry")
        if image.mode in ("LA", "RGBA") and image.getextrema()[-1] == (255, 255):
            image = image.convert(image.mode[:-1])
        # I: 16 bits in a Pillow before 12
        if image.mode not in ("1", "L", "P", "I", "I;16", "RGB") or (image.mode == "RGB" and bits16):
            raise FormatError(f"pixels of mode {image.mode}{' of 16 bits' * bits16}",
                              "save it as grey, or as RGB of 8 bits, without transparency")
        pixels = np.array(image)
    pixels = pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    return pixels[:, :, None]


def misfit(file: str | os.PathLike, key: str) -> tuple[str, str, str] | None:
    """Why a photograph cannot be an ``image`` or a ``label``: what was expected, what was found, what to do."""
    with Image.open(file, formats=FORMATS) as image:
        if key == "image" and image.mode == "P":
            return "intensities or colours", "a palette PNG, which holds indices", "save it as grey or RGB"
        if key == "label" and image.format != "PNG":
            return ("class numbers kept exactly", "a JPEG, whose compression changes them along the edges",
                    "save the original label as PNG; one that was a JPEG once must be cleaned")
    return None


def unlike_voxels(file: str | os.PathLike, key: str) -> tuple[str, str, str] | None:
    """Why MONAI would not read the pixels that :func:`read_photograph` does; arguments and texts as :func:`misfit`."""
    with Image.open(file, formats=FORMATS) as image:
        if image.mode in ("LA", "RGBA"):
            expected = "grey or RGB" if key == "image" else "class numbers as a grey or palette PNG"
            return expected, f"pixels of mode {image.mode}", "save it without the alpha channel"
        if key == "image" and image.mode.startswith("I"):  # of a label they are class numbers, read as they are
            return "a photograph of 8 bits, values 0 to 255", "16 bits", "scale it to 8 bits"
    return None


def write_png(file: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write ``(H, W)`` or ``(H, W, 3)`` of type uint8; the same pixels give the same bytes."""
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
