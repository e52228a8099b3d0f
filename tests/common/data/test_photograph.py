import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from common.data.check import DataError, check_cases, read_volume
from common.data.photograph import FormatError, is_photograph, misfit, read_photograph, unlike_voxels, write_png

GREY = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5) * 8
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def save(file, pixels, mode=None, **options):
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, **options)
    return str(file)


def raw_png(file, depth, kind, rows):
    """A PNG written by hand: Pillow writes no colours of 16 bits. ``rows`` are bytes, each row behind a filter byte."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, len(rows), depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return str(file)


@pytest.mark.parametrize("name", ["a.png", "A.PNG"])
def test_grey_and_colour_png_first_axis_down(tmp_path, name):
    for pixels, shape in ((GREY, (6, 5, 1)), (COLOUR, (6, 5, 1, 3))):
        voxels, affine = read_volume(save(tmp_path / name, pixels))
        assert voxels.shape == shape and voxels.dtype == np.uint8
        np.testing.assert_array_equal(voxels[:, :, 0], pixels)
        np.testing.assert_array_equal(affine, np.eye(4))


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg(tmp_path, suffix):
    smooth = np.repeat(np.linspace(0, 250, 64)[:, None], 48, axis=1).astype(np.uint8)
    voxels = read_photograph(save(tmp_path / f"a{suffix}", np.stack([smooth, smooth // 2, 255 - smooth], -1),
                                  quality=95, subsampling=0))
    assert voxels.shape == (64, 48, 1, 3)
    assert np.abs(voxels[:, :, 0, 0].astype(int) - smooth).max() < 12
    assert read_photograph(save(tmp_path / f"b{suffix}", smooth)).shape == (64, 48, 1)


def test_a_palette_gives_its_indices(tmp_path):
    picture = Image.fromarray(GREY // 100)  # 0, 1, 2
    picture = picture.convert("P")
    picture.putdata((GREY // 100).ravel().tolist())
    picture.putpalette([9, 9, 9, 250, 0, 0, 0, 250, 0])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png")[..., 0], GREY // 100)


def test_bits_and_grey_of_16_bits_keep_their_values(tmp_path):
    bits = read_photograph(save(tmp_path / "a.png", GREY > 100))
    assert bits.dtype == np.uint8 and (bits[..., 0] == (GREY > 100)).all()
    wide = GREY.astype(np.uint16) * 250
    np.testing.assert_array_equal(read_photograph(save(tmp_path / "b.png", wide))[..., 0], wide)


def test_an_alpha_channel_without_effect_is_left_out(tmp_path):
    full = np.full((6, 5, 1), 255, np.uint8)
    file = save(tmp_path / "a.png", np.concatenate([COLOUR, full], -1))
    np.testing.assert_array_equal(read_photograph(file)[:, :, 0], COLOUR)
    file = save(tmp_path / "b.png", np.concatenate([GREY[..., None], full], -1))
    np.testing.assert_array_equal(read_photograph(file), GREY[..., None])
    full[2, 2] = 100
    for i, pixels in enumerate((COLOUR, GREY[..., None])):
        file = save(tmp_path / f"{i}.png", np.concatenate([pixels, full], -1))
        with pytest.raises(FormatError, match="found|without transparency"):
            read_photograph(file)


def test_kinds_that_are_not_read_say_so(tmp_path):
    with pytest.raises(FormatError, match="pixels of mode CMYK; save it as grey, or as RGB"):
        read_photograph(save(tmp_path / "a.jpg", COLOUR, "CMYK"))
    wide = raw_png(tmp_path / "b.png", 16, 2, [bytes(range(12))] * 2)
    with pytest.raises(FormatError, match="mode RGB of 16 bits"):
        read_photograph(wide)
    with pytest.raises(FormatError, match="not that of a NIfTI file .* or of a photograph"):
        read_volume(save(tmp_path / "a.tif", GREY))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_picture_that_its_exif_turns_is_refused(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 1
    assert read_photograph(save(tmp_path / f"a{suffix}", GREY, exif=exif)).shape == (6, 5, 1)
    exif[0x0112] = 6
    with pytest.raises(FormatError, match="EXIF orientation"):
        read_photograph(save(tmp_path / f"b{suffix}", GREY, exif=exif))


def test_what_cannot_be_an_image_or_a_label(tmp_path):
    grey, palette = save(tmp_path / "a.png", GREY), save(tmp_path / "p.png", GREY, "P")
    jpeg = save(tmp_path / "a.jpg", GREY)
    disguised = save(tmp_path / "b.png", GREY, format="JPEG")
    assert misfit(grey, "image") is misfit(grey, "label") is misfit(jpeg, "image") is misfit(palette, "label") is None
    assert misfit(palette, "image")[1] == "a palette PNG, which holds indices"
    assert misfit(jpeg, "label")[1] == misfit(disguised, "label")[1] == (
        "a JPEG, whose compression changes them along the edges")


def test_images_that_monai_would_read_otherwise(tmp_path):
    full = np.full((6, 5, 1), 255, np.uint8)
    for name, pixels in (("a.png", GREY), ("b.jpg", COLOUR), ("c.png", GREY > 100)):
        file = save(tmp_path / name, pixels)
        assert unlike_voxels(file, "image") is unlike_voxels(file, "label") is None
    for pixels, mode in ((COLOUR, "RGBA"), (GREY[..., None], "LA")):
        file = save(tmp_path / f"{mode}.png", np.concatenate([pixels, full], -1))
        assert unlike_voxels(file, "image")[1] == f"pixels of mode {mode}"
    wide = save(tmp_path / "d.png", GREY.astype(np.uint16) * 250)
    with pytest.raises(DataError, match="expected a photograph of 8 bits, values 0 to 255, found 16 bits; scale"):
        check_cases([{"case": "d", "image": str(wide)}], {})


def test_names():
    assert is_photograph("/a/b.JpG") and is_photograph("b.jpeg") and not is_photograph("png.nii.gz")


@pytest.mark.parametrize("pixels", [GREY, COLOUR, COLOUR[:, ::-1], GREY[::2]])
def test_what_is_written_is_read(tmp_path, pixels):
    write_png(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png")[:, :, 0], pixels)
