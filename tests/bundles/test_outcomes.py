"""What comes of bad input: one row for each kind, in all bundles, in training, ``tools check`` and inference.

Each cell is Refused (one text says which case, which file, what was expected, found, and to be done), Warned (the same
text, and the work goes on), Accepted, or a text that says why there is no such cell. Training is looked at up to its
first batch; an inference that is not refused must leave a label map with the grid and the header of its scan.
"""

import gzip
import json
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.data import DataError
from common.data.scan import load_scan
from common.engine import root_cause

AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])
FEW_SHOT, DOMAINS, SLICES, VOLUMES = "apscl_fewshot", "sgcg_dg", "transmedseg_ssl", "diffcl_ssl"


@dataclass(frozen=True)
class Refused:
    """Patterns of the text. Of the spoilt case: what was expected, what was found, what to do."""

    expected: str
    found: str
    todo: str
    key: str = "image"

    def pattern(self, spoilt):
        return (f"b2, {re.escape(str(getattr(spoilt, self.key)))}: expected {self.expected}, found {self.found}; "
                f"{self.todo}")  # fmt: skip


@dataclass(frozen=True)
class Warned(Refused):
    """As Refused; the work goes on."""


@dataclass(frozen=True)
class Says:
    """Refused, of something other than the spoilt case's files: the pattern of the whole text."""

    text: str

    def pattern(self, spoilt):
        return self.text


ACCEPTED = "accepted"
NO_LABEL = "an inference reads no label"
NO_LIST = "an inference of given images reads no list"


class Spoilt:
    """A copy of the data set; the rows spoil its case ``b2``."""

    def __init__(self, data, folder):
        self.folder = Path(shutil.copytree(data, folder / "set"))
        self.image, self.label = (self.folder / key / "b2.nii.gz" for key in ("images", "labels"))
        self.images = [str(self.image)]  # what an inference is given

    @property
    def index(self):
        return json.loads((self.folder / "dataset.json").read_text())

    def list(self, **changes):
        (self.folder / "dataset.json").write_text(json.dumps(self.index | changes))

    def item(self, **changes):
        """Change the item of ``b2`` in the list."""
        self.list(training=[item | changes if "b2" in item["image"] else item for item in self.index["training"]])

    def voxels(self, key):
        return np.asanyarray(load_scan(getattr(self, key)).dataobj)

    def write(self, key, array=None, affine=AFFINE, codes=(1, 1), qform=None, unit="mm"):
        array = self.voxels(key) if array is None else array
        scan = nib.Nifti1Image(array, affine, dtype=array.dtype)
        scan.set_sform(affine, codes[1])
        scan.set_qform(affine if qform is None else qform, codes[0])
        scan.header.set_xyzt_units(unit)
        nib.save(scan, getattr(self, key))

    def both(self, **options):
        for key in ("image", "label"):
            self.write(key, **options)

    def cut(self, *shape):
        """Image and label of this shape, from the middle of the structures."""
        for key in ("image", "label"):
            array = self.voxels(key)
            starts = [(n - m) // 2 for n, m in zip(array.shape, shape, strict=True)]
            self.write(key, array[tuple(slice(i, i + n) for i, n in zip(starts, shape, strict=True))])

    def move(self, **names):
        """Rename the folder, or the files of ``b2``."""
        for key, name in names.items():
            if key == "folder":
                self.folder = self.folder.rename(self.folder.parent / name)
                self.image, self.label = (self.folder / part / "b2.nii.gz" for part in ("images", "labels"))
                self.images = [str(self.image)]
            else:
                file = getattr(self, key)
                setattr(self, key, file.rename(file.with_name(name)))
                self.item(**{key: f"{key}s/{name}"})
        self.images = [str(self.image)]


def filled(value, dtype=np.float32):
    """The image with a corner of this value."""

    def spoil(spoilt):
        array = spoilt.voxels("image").astype(dtype)
        array[:5, :5, :5] = value
        spoilt.write("image", array)

    return spoil


def voxel(key, value, dtype=np.float32):
    """One voxel of this value."""

    def spoil(spoilt):
        array = spoilt.voxels(key).astype(dtype)
        array[3, 3, 3] = value
        spoilt.write(key, array)

    return spoil


def turned(degrees, shear=0.0):
    affine, angle = AFFINE.copy(), np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), shear], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ AFFINE[:3, :3]
    return affine


def moved(x):
    affine = AFFINE.copy()
    affine[0, 3] = x
    return affine


def scaled_label(spoilt):
    """Stored as 0, 127, 254 with a slope of 1 / 127: 2.0000001 when it is read."""
    scan = nib.Nifti1Image((spoilt.voxels("label") * 127).astype(np.uint8), AFFINE)
    scan.header.set_xyzt_units("mm")
    raw = bytearray(scan.to_bytes())
    raw[112:116] = np.float32(1 / 127).tobytes()  # scl_slope, which nibabel does not write with the array as it is
    spoilt.label.write_bytes(gzip.compress(bytes(raw)))


def singular(spoilt):
    """The rows of the sform are on one plane."""
    raw = bytearray(gzip.decompress(spoilt.image.read_bytes()))
    raw[252:254] = b"\0\0"  # qform_code
    raw[312:328] = bytes(16)  # srow_z
    spoilt.image.write_bytes(gzip.compress(bytes(raw)))


def without(domain=None, split=None):
    def spoil(spoilt):
        index = spoilt.index
        spoilt.list(**({split: []} if split else {}),
                    **({"training": [i for i in index["training"] if i["domain"] not in domain]} if domain else {}))

    return spoil


def in_validation(spoilt):
    spoilt.list(validation=spoilt.index["training"][3:4])


def copied(spoilt):
    """The same voxels under another name, in validation."""
    for key in ("image", "label"):
        file = getattr(spoilt, key)
        shutil.copy(file, file.with_name("twin.nii.gz"))
    spoilt.list(validation=[{"image": "images/twin.nii.gz", "label": "labels/twin.nii.gz", "domain": "b"}])


def duplicate_key(spoilt):
    file = spoilt.folder / "dataset.json"
    file.write_text(file.read_text().replace('"name":', '"training": [], "name":', 1))


def hidden(spoilt):
    for key in ("image", "label"):
        file = getattr(spoilt, key)
        file.with_name("._b2.nii.gz").write_bytes(b"\0\5\26\7Mac")
    for file in (spoilt.folder / "images").glob("[!.]*"):
        if file != spoilt.image:
            file.unlink()
    spoilt.images = str(spoilt.folder / "images")


def hidden_in_training(spoilt):
    """The list does not name them."""
    for key in ("image", "label"):
        getattr(spoilt, key).with_name("._b2.nii.gz").write_bytes(b"\0\5\26\7Mac")


def channels_apart(spoilt):
    """A folder of nnU-Net for an inference."""
    spoilt.move(image="b2_0000.nii.gz")
    folder = spoilt.folder / "imagesTs"
    folder.mkdir()
    for name in ("b2_0000.nii.gz", "b2_0001.nii.gz"):
        shutil.copy(spoilt.image, folder / name)
    spoilt.images = str(folder)


COPY = "the file is damaged or no image: copy it again"
FINITE = ("finite voxels", r"1 of 3600 that are NaN or Inf", "repair the image: numpy.nan_to_num")
NO_SPLIT = {FEW_SHOT: Says(r"labelled scans and \d folds.*: add scans, or a `validation` list")}
SEMI = (SLICES, VOLUMES)


def of(rest, **cells):
    """An outcome by bundle."""
    return {name: cells.get(name, rest) for name in (FEW_SHOT, DOMAINS, SLICES, VOLUMES)}


def semi(outcome, rest=ACCEPTED):
    return {FEW_SHOT: rest, DOMAINS: rest, SLICES: outcome, VOLUMES: outcome}


# name: how the case is spoilt, the outcome in training and in `tools check` (one check), that of an inference
DATA = {
    "as it should be": (lambda s: None, ACCEPTED, ACCEPTED),
    # --- files ---
    "missing image": (lambda s: s.image.unlink(), *[Refused("the image", "no such file", "correct the path")] * 2),
    "missing label": (lambda s: s.label.unlink(),
                      Refused("the label", "no such file", "correct the path", "label"), NO_LABEL),
    "truncated .gz": (lambda s: s.image.write_bytes(s.image.read_bytes()[:900]),
                      *[Refused("a readable image", "EOFError.*", COPY)] * 2),
    "zero bytes": (lambda s: s.image.write_bytes(b""), *[Refused("a readable image", ".*", COPY)] * 2),
    "zero bytes, label": (lambda s: s.label.write_bytes(b""),
                          Refused("a readable label", ".*", COPY, "label"), NO_LABEL),
    "a text as image": (lambda s: s.image.write_text("scan"), *[Refused("a readable image", ".*", COPY)] * 2),
    # --- voxels ---
    "NaN voxels": (voxel("image", np.nan), Refused(*FINITE), Refused(*FINITE)),
    "Inf voxels": (voxel("image", np.inf), Refused(*FINITE), Refused(*FINITE)),
    "1e300": (filled(1e300, np.float64), *[Refused("finite voxels", "125 of 3600 beyond float32", "repair")] * 2),
    "fill value -3.4e38": (filled(-3.4e38), *[Refused("intensities", "125 of 3600 voxels of -3.4e[+]38.*",
                                                      "a fill value: set these voxels to")] * 2),
    "fill value -1e20": (filled(-1e20), *[Refused("intensities", "125 of 3600 voxels of -1e[+]20.*",
                                                  "a fill value: set these voxels to")] * 2),
    "squares beyond float32": (lambda s: s.write("image", s.voxels("image").astype(np.float32) * 1e25),
                               *[Refused("intensities within 1e[+]15 of zero.*", "values f.*", "set what is")] * 2),
    "constant image": (lambda s: s.write("image", np.full((20, 18, 10), 7, np.float32)),
                       *[Warned("an image", "the value 7.* everywhere", "look at it")] * 2),
    # --- axes ---
    "two channels": (lambda s: s.write("image", np.stack([s.voxels("image")] * 2, -1)),
                     *[Refused("3 axes", r"shape \(20, 18, 10, 2\)", r"give the network's 1 channel\(s\)")] * 2),
    "(H, W, D, 1)": (lambda s: s.write("image", s.voxels("image")[..., None]), ACCEPTED, ACCEPTED),
    "five axes": (lambda s: s.write("image", s.voxels("image")[..., None, None].repeat(2, 4)),
                  *[Refused("3 axes", r"shape \(20, 18, 10, 1, 2\)", "give the network's")] * 2),
    "two axes": (lambda s: s.write("image", s.voxels("image")[..., 0]),
                 *[Refused("3 axes", r"shape \(20, 18\)", "give a single slice a third axis")] * 2),
    "one slice": (lambda s: s.cut(20, 18, 1), ACCEPTED, ACCEPTED),
    "one row": (lambda s: s.cut(1, 18, 10), ACCEPTED, ACCEPTED),
    "one column": (lambda s: s.cut(20, 1, 10), ACCEPTED, ACCEPTED),
    "smaller than a patch": (lambda s: s.cut(5, 4, 3), ACCEPTED, ACCEPTED),
    # --- header ---
    "oblique affine": (lambda s: s.both(affine=turned(20)), ACCEPTED, ACCEPTED),
    "singular affine": (singular, *[Refused("an invertible affine|a readable image", ".*",
                                            "convert the original|the file is damaged")] * 2),
    "shear": (lambda s: s.both(affine=turned(0, 0.2), codes=(0, 1)),
              *[Warned("axes at right angles", "a shear.*", "distances are measured")] * 2),
    "no orientation": (lambda s: s.both(codes=(0, 0)),
                       *[Warned("an orientation", "none.*", "the first axis is taken to run")] * 2),
    "qform is not sform": (lambda s: s.both(qform=moved(30)), *[Warned("qform and sform of one place", "corners that.*",
                                                                       "the sform is used")] * 2),
    "micrometres": (lambda s: s.both(unit="micron"),
                    *[Refused("a spacing in millimetres", "the unit micron", "convert it")] * 2),
    # --- image and label ---
    "other shape": (lambda s: s.write("label", s.voxels("label")[:-1]),
                    Refused(r"the image's shape \(20, 18, 10\)", r"\(19, 18, 10\)", "resample it", "label"), NO_LABEL),
    "other spacing": (lambda s: s.write("label", affine=np.diag([-1.5, -1.5, 5, 1])),
                      Refused(r"the image's spacing \[1.5, 1.5, 4.0\]", r"\[1.5, 1.5, 5.0\].*", "resample it",
                              "label"), NO_LABEL),
    "other origin": (lambda s: s.write("label", affine=moved(9)),
                     Refused("the image's origin .*", ".*tolerance 0.1.*", "look at the two as an overlay", "label"),
                     NO_LABEL),
    "other direction": (lambda s: s.write("label", affine=turned(10)),
                        Refused("the image's direction .*", ".*tolerance 0.1.*", "look at the two", "label"), NO_LABEL),
    # --- labels ---
    "unknown label id": (voxel("label", 7, np.uint8), Refused(r"label ids out of \[0, 1, 2\]", r"\[0, 1, 2, 7\]",
                                                              "correct or renumber", "label"), NO_LABEL),
    "negative label id": (voxel("label", -1, np.int16), Refused(r"label ids out of \[0, 1, 2\]", r"\[-1, 0, 1, 2\]",
                                                                "correct or renumber", "label"), NO_LABEL),
    "label 1.5": (voxel("label", 1.5), Refused("whole numbers", "1 voxels such as 1.5", "interpolated labels", "label"),
                  NO_LABEL),
    "label NaN": (voxel("label", np.nan), Refused("whole numbers", "1 voxels such as nan", "interpolated", "label"),
                  NO_LABEL),
    "label with a slope": (scaled_label, ACCEPTED, NO_LABEL),
    "label of 64 bits": (lambda s: s.write("label", s.voxels("label").astype(np.uint64)), ACCEPTED, NO_LABEL),
    "label 0.99999994": (lambda s: s.write("label", s.voxels("label").astype(np.float32) * np.float32(0.99999994)),
                         ACCEPTED, NO_LABEL),
    "label of 0 and 255": (lambda s: s.write("label", (255 * (s.voxels("label") > 0)).astype(np.uint8)),
                           Refused(r"label ids out of \[0, 1, 2\]", r"\[0, 255\]", "correct or renumber", "label"),
                           NO_LABEL),
    "label of background": (lambda s: s.write("label", np.zeros((20, 18, 10), np.uint8)),
                            of(Warned("a labelled structure", "background only", "look at it", "label"),
                               sgcg_dg=Says(r"b2: expected every region.*|b2.*(cup|disc).*allow_missing")), NO_LABEL),
    "labels with a gap": (lambda s: s.list(labels={"0": "background", "1": "wall", "2": "cavity", "9": "tumour"}),
                          semi(Says(r"dataset.json: expected `labels` numbered 1 to 3 without gaps.*found \[1, 2, 9\]; "
                                    "renumber"), None), NO_LABEL),
    "two structures of one name": (lambda s: s.list(labels={"0": "background", "1": "wall", "2": "Wall "}),
                                   Says("`labels`: expected names that differ .*rename one"), NO_LABEL),
    # --- lists ---
    "no dataset.json": (lambda s: (s.folder / "dataset.json").unlink(),
                        Says("dataset.json: expected a file, found none. Save this text"), NO_LIST),
    "no labelled case": (without(split="training"), Says("0 of 1 cases are labelled: `training` is empty|expected"),
                         NO_LIST),
    "no unlabelled case": (without(split="unlabeled"), semi(Says("expected unlabelled cases, found none in `unlabeled`"
                                                                 ".*add images")), NO_LIST),
    "one domain": (without(domain="ac"), of(ACCEPTED, sgcg_dg=Says("domains: expected two or more to train on.*found "
                                                                   "none; add scans"), **NO_SPLIT), NO_LIST),
    "one image of a domain": (lambda s: s.list(training=s.index["training"][1:]),
                              of(ACCEPTED, sgcg_dg=Says("domain a: expected two or more training images, found 1; add "
                                                        "some")), NO_LIST),
    "twice in a list": (lambda s: s.list(training=s.index["training"] + s.index["training"][3:4]),
                        Says(r"b2, \S*b2.nii.gz: expected once, found twice in training.*; remove one"), NO_LIST),
    "in two splits": (in_validation, Says("b2: expected in one split, found in training and validation; keep it in one"
                                          ), NO_LIST),
    "one scan, two names": (copied, Says(r"twin, \S*: expected an image that is in one split only, found the same "
                                         "voxels in b2.*remove one"), NO_LIST),
    "duplicate key": (duplicate_key, Says(r"training.*(twice|once|again|two)"), NO_LIST),
    "`fold` of Auto3DSeg": (lambda s: s.item(fold=1), Says("fold"), NO_LIST),
    "`testing` of Auto3DSeg": (lambda s: s.list(testing=[{"image": "images/u1.nii.gz"}]), Says("testing"), NO_LIST),
    "list of modality files": (lambda s: s.item(image=["images/b2.nii.gz", "images/a1.nii.gz"]),
                               Says(r"training\[3\]: expected .*(one file|4-D|channel|merge|stack)"), NO_LIST),
    "no such label listed": (lambda s: s.item(label=None), Says(r"training\[3\]: expected .* found .*label"), NO_LIST),
    "hidden files": (hidden_in_training, ACCEPTED, ACCEPTED),
    "hidden files in a folder": (hidden, "the list decides what is read", ACCEPTED),
    "channels in files of their own": (channels_apart, "a training list names files", Says(
        "b2: expected one file a scan, .*found b2_0000.nii.gz, b2_0001.nii.gz; merge them")),
    # --- names ---
    "a number as folder": (lambda s: s.move(folder="2024_03_01"), ACCEPTED, ACCEPTED),
    "# $ @ and spaces": (lambda s: s.move(folder="$a #b @c d"), ACCEPTED, ACCEPTED),
    "capital letters of a suffix": (lambda s: s.move(image="b2.Nii.Gz", label="b2.NII.GZ"), ACCEPTED, ACCEPTED),
    "case with ..": (lambda s: s.item(case="../../b2"), ACCEPTED, NO_LIST),
    "case with /": (lambda s: s.item(case="a/b"), ACCEPTED, NO_LIST),
    "case of 300 letters": (lambda s: s.item(case="b" * 300), ACCEPTED, NO_LIST),
    "case as formula": (lambda s: s.item(case="=1+1"), ACCEPTED, NO_LIST),
}  # fmt: skip


def outcome_of(door, spoilt, outcome):
    """What a door does, against what the table says of it; None where it was refused as it should be."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = door()
        except (Exception, SystemExit) as error:  # whatever a user would see
            cause = root_cause(error)
            assert isinstance(outcome, (Refused, Says)) and not isinstance(outcome, Warned), cause
            assert isinstance(cause, (DataError, SystemExit)), repr(cause)  # ours, and not a library's
            assert re.search(outcome.pattern(spoilt), str(cause), re.DOTALL), str(cause)
            return None
    text = "\n".join(str(warning.message) for warning in caught)
    if isinstance(outcome, Warned):
        assert re.search(outcome.pattern(spoilt), text), text
    else:
        assert outcome == ACCEPTED, f"expected {outcome}, found that it was accepted"
        assert "unusual data" not in text, text
    return result


def same_grid(map_file, scan_file):
    """The map lies where its scan does, for a reader of either matrix, and on the scan's own voxels."""
    found, scan = nib.load(map_file), load_scan(scan_file)
    assert found.shape == scan.shape[:3]
    for name in ("qform_code", "sform_code", "pixdim", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                 "qoffset_z", "srow_x", "srow_y", "srow_z"):  # fmt: skip
        expected = scan.header[name][:4] if name == "pixdim" else scan.header[name]
        got = found.header[name][:4] if name == "pixdim" else found.header[name]
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)
    assert found.header.get_xyzt_units()[0] == scan.header.get_xyzt_units()[0]
    assert set(np.unique(found.dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize("row", DATA)
def test_data(row, doors, six_scans, tmp_path):
    spoil, data, inference = DATA[row]
    spoilt = Spoilt(six_scans, tmp_path)
    spoil(spoilt)
    data = data[doors.name] if isinstance(data, dict) else data
    if isinstance(data, (Refused, Says)) or data == ACCEPTED:
        batch = outcome_of(lambda: doors.first_batch(spoilt.folder), spoilt, data)
        for value in (batch or {}).values():
            assert not torch.is_tensor(value) or torch.isfinite(value.float()).all()
        outcome_of(lambda: doors.check(spoilt.folder), spoilt, data)
    if isinstance(inference, (Refused, Says)) or inference == ACCEPTED:
        maps = outcome_of(lambda: doors.infer(spoilt.images, tmp_path / "out"), spoilt, inference)
        assert maps is None or [file.name for file in maps] == ["b2_seg.nii.gz"]
        for file in maps or []:
            same_grid(file, spoilt.image)
        assert maps is not None or not (tmp_path / "out").exists()  # refused before anything is written
