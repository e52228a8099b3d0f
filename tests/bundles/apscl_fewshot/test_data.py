import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from apscl_fewshot.data import QueryDataset, part_of, read_datalist, slices, split_scans
from apscl_fewshot.protocol import support_slices
from common.data import DataError, Preprocessing, read_dataset

PREPROCESSING = Preprocessing(intensity=[], image_size=[20, 24])
CASES = [f"case_{i:02d}" for i in range(12)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory, write_scans):
    """Twelve scans; no folds in dataset.json."""
    return write_scans(tmp_path_factory.mktemp("data") / "set", CASES)


def names(items):
    return [item["case"] for item in items]


def split(folder, fold=0, support="next_scan", support_scans=None):
    return tuple(names(items) for items in split_scans(read_dataset(folder), fold, support, support_scans))


def read(folder, **options):
    return read_datalist(str(folder), "/nowhere", PREPROCESSING, **options)


def change(folder, tmp_path, **entries):
    """A copy of dataset.json with other entries; the files stay where they are."""
    index = json.loads((folder / "dataset.json").read_text())
    for item in index["training"]:
        item |= {key: str(folder / item[key]) for key in ("image", "label")}
    index |= entries
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize(
    ("fold", "queries", "support"),
    # five contiguous blocks of twelve: 3, 3, 2, 2, 2; the support is the scan after the block, in a circle
    [(0, [0, 1, 2], 3), (1, [3, 4, 5], 6), (2, [6, 7], 8), (3, [8, 9], 10), (4, [10, 11], 0)],
)
def test_folds_are_contiguous_blocks_and_the_next_scan_supports(folder, fold, queries, support):
    expected = [CASES[i] for i in range(12) if i not in queries and i != support]
    assert split(folder, fold) == (expected, [CASES[i] for i in queries], [CASES[support]])


@pytest.mark.parametrize(
    ("support", "number", "expected"),
    [("first", None, [0]), ("last", None, [11]), ("case_07", None, [7]), ("next_scan", 1, [6]), ("last", 3, [6, 8, 10]),
     ("next_scan", 9, [6, 8, 10, 0])],
)  # fmt: skip
def test_choices_of_the_support(folder, support, number, expected):
    """By name, or so many scans, each the first of a fold."""
    training, queries, supports = split(folder, 1, support, number)
    assert queries == CASES[3:6] and supports == [CASES[i] for i in expected]
    assert sorted(training + queries + supports) == CASES  # each scan has one role


def test_cases_are_in_natural_order(folder, tmp_path):
    training = json.loads((change(folder, tmp_path) / "dataset.json").read_text())["training"]
    for number, item in enumerate(training):
        item["case"] = f"scan_{number + 1}"
    changed = change(folder, tmp_path, training=training)
    assert split(changed, 0)[1:] == (["scan_1", "scan_2", "scan_3"], ["scan_4"])
    assert split(changed, 2)[1:] == (["scan_7", "scan_8"], ["scan_9"])
    assert split(changed, 3)[1:] == (["scan_9", "scan_10"], ["scan_11"])


def test_folds_of_dataset_json_come_first(folder, tmp_path):
    folds = [["case_01", "case_05"], ["case_00", "case_02"], ["case_03", "case_04", *CASES[6:]]]
    changed = change(folder, tmp_path, folds=folds)
    rest = ["case_00", "case_02", "case_03", "case_04", *CASES[7:]]
    assert split(changed, 0) == (rest, folds[0], ["case_06"])
    assert split(changed, 1, support_scans=2)[2] == ["case_03", "case_01"]
    with pytest.raises(DataError, match="12 labelled scans and 3 folds; asked for fold 3"):
        split(changed, 3)


@pytest.mark.parametrize("with_folder", [True, False])
def test_a_validation_list_holds_the_queries(folder, tmp_path, write_scans, with_folder):
    index = json.loads((folder / "dataset.json").read_text())["training"]
    items = [{key: str(folder / item[key]) for key in ("image", "label")} for item in index]
    changed = change(folder, tmp_path, training=items[:8], validation=items[8:])
    if with_folder:
        write_scans(tmp_path / "support", ["teacher_1", "teacher_2"])
        assert split(changed) == (CASES[:8], CASES[8:], ["teacher_1", "teacher_2"])
    else:
        assert split(changed) == (CASES[1:8], CASES[8:], CASES[:1])


def test_errors_of_the_split(folder, tmp_path):
    with pytest.raises(DataError, match="12 labelled scans and 5 folds; asked for fold 5.*add scans, or a `val"):
        split(folder, 5)
    with pytest.raises(DataError, match="asked for fold -1"):
        split(folder, -1)
    for support in ("case_00", "3"):  # a number is the name of a case, and no case has this one
        with pytest.raises(DataError, match=f"support '{support}': expected next_scan.* outside fold 0: .'case_03'"):
            split(folder, 0, support)
    with pytest.raises(DataError, match="support_scans: expected null or a number from 1 on, found 0"):
        split(folder, support_scans=0)
    index = json.loads((folder / "dataset.json").read_text())["training"][:2]
    items = [{key: str(folder / item[key]) for key in ("image", "label")} for item in index]
    with pytest.raises(DataError, match="2 labelled scans and 2 folds.*needs a query, a support and at least one scan"):
        split(change(folder, tmp_path, training=items))


def test_no_scan_to_train_on_and_two_of_a_case_are_refused(folder, tmp_path):
    index = json.loads((folder / "dataset.json").read_text())["training"]
    items = [{key: str(folder / item[key]) for key in ("image", "label")} for item in index]
    with pytest.raises(DataError, match="no scan is left to train on"):
        split(change(folder, tmp_path, training=items[:1], validation=items[1:]))
    twice = [item | {"case": f"p{number // 2}"} for number, item in enumerate(items[:3] + items[4:8])]
    with pytest.raises(DataError, match="several scans share the case p0, p1, p2: folds"):
        split(change(folder, tmp_path, training=twice))


def test_the_data_list_names_supports_and_classes(folder):
    labels = {1: "left box", 2: "right box", 3: "low box"}
    datalist = read(folder, fold=1, support_scans=2)
    assert datalist["novel_labels"] == {3: "low box"} and datalist["labels"] == labels
    for query in datalist["validation"]:
        assert names(query["support"]) == ["case_06", "case_08"] and query["novel_labels"] == {3: "low box"}
    assert read(folder, novel_labels=[2, 1])["novel_labels"] == {2: labels[2], 1: labels[1]}
    assert read(folder, novel_labels=2)["novel_labels"] == {2: labels[2]}
    with pytest.raises(DataError, match=r"novel_labels: expected some of .*'low box'.*, found 9, 0$"):
        read(folder, novel_labels=[9, 1, 0])
    with pytest.raises(DataError, match="no such folder"):
        read(folder / "missing")


def test_a_support_without_the_novel_label_is_refused(tmp_path, write_scans):
    folder = write_scans(tmp_path / "set", CASES[:3], extents={1: (1, 7), 3: (3, 5)})
    with pytest.raises(DataError, match=r"support case_01: expected novel label 2 \(right box\), found \(0, 1, 3\)"):
        read(folder, novel_labels=[2, 1])
    queries = write_scans(tmp_path / "queries", CASES[3:4], extents={1: (1, 7), 2: (2, 6)})
    items = [{key: item[key] for key in ("image", "label")} for item in read_dataset(queries).training]
    apart = change(folder, tmp_path, validation=items)
    write_scans(apart / "support", CASES[4:5], extents={1: (2, 7), 3: (3, 5)})
    assert names(read(apart, novel_labels=[1])["validation"][0]["support"]) == CASES[4:5]
    with pytest.raises(DataError, match="support case_04: expected novel label 2"):
        read(apart, novel_labels=[2])


def test_photographs_are_refused(folder, tmp_path, write_scans):
    """Of the data set, and of the supports beside it."""
    pair = {}
    for key in ("image", "label"):
        pair[key] = str(tmp_path / f"{key}.png")
        Image.fromarray(np.arange(42, dtype=np.uint8).reshape(6, 7) % 3).save(pair[key])
    queries = write_scans(tmp_path / "queries", ["query"], extents={1: (1, 7), 2: (2, 6)})
    scans = [{key: item[key] for key in ("image", "label")} for item in read_dataset(queries).training]
    (tmp_path / "support").mkdir()
    change(folder, tmp_path / "support", training=[pair])
    for validation in ([pair], scans):  # with the photograph, then with that of the support alone
        with pytest.raises(DataError, match=r"1 images, such as .*image.png: expected scans \(NIfTI\), as the prep"):
            read(change(folder, tmp_path, validation=validation))


def test_sample_data_is_made_at_its_place_alone(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("apscl_fewshot.data.generate_sample_data", lambda directory: made.append(directory))
    for place in (tmp_path / "other", tmp_path / "sample_data"):
        with pytest.raises(DataError):
            read_datalist(str(place), str(tmp_path), PREPROCESSING)
    assert made == [tmp_path / "sample_data"]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 8, [0, 0, 0, 1, 1, 1, 2, 2, 2]),  # thirds of 8 / 3 slices
        (10, 16, [0, 0, 1, 1, 2, 2, 2]),
        (4, 5, [0, 2]),
        (4, 4, [0]),
    ],
)
def test_parts_against_lists_made_by_hand(first, last, expected):
    """floor((z - first) / ((last - first) / 3)), the end of the organ being in the last part."""
    assert part_of(np.arange(first, last + 1), first, last).tolist() == expected
    assert [int(part_of(z, first, last)) for z in range(first, last + 1)] == expected


@pytest.mark.parametrize(
    ("count", "parts", "expected"),
    [
        (12, 3, [2, 6, 10]), (7, 3, [1, 3, 5]), (3, 3, [0, 1, 2]), (2, 3, [0, 1, 1]), (1, 3, [0, 0, 0]),
        (9, 1, [4]), (4, 2, [1, 3]),
    ],  # fmt: skip
)
def test_support_slices_against_lists_made_by_hand(count, parts, expected):
    """The slice at 1/6, 3/6 and 5/6 of those that show the organ, which need not be neighbours."""
    inside = [10 + 2 * i for i in range(count)]
    assert support_slices(inside, parts) == [inside[i] for i in expected]


def test_queries_come_with_their_supports(folder):
    data = QueryDataset(read(folder, fold=0, support_scans=2)["validation"], PREPROCESSING.evaluation())
    assert len(data) == 3
    item = data[1]
    assert item["case"] == "case_01" and names(item["support"]) == ["case_03", "case_06"]
    for scan in (item, *item["support"]):
        assert scan["image"].shape == (9, 1, 20, 24) and scan["label"].shape == (9, 40, 36)
        assert scan["native"].shape == (40, 36, 9) and scan["label"].dtype == torch.uint8
        assert scan["spacing"] == [2.0, 2.0, 5.0] and scan["image"].is_contiguous()
    assert type(item["image"]) is torch.Tensor and data[0]["support"][0] is item["support"][0]  # read once
    assert item["native"].min() == 1000 and item["label"].unique().tolist() == [0, 1, 2, 3]


def test_a_list_of_images_and_labels_alone(folder):
    """What MONAI Label hands over: the first scan supports the others, and the highest label is the class."""
    index = json.loads((folder / "dataset.json").read_text())["training"][:3]
    items = [{key: str(folder / item[key]) for key in ("image", "label")} for item in index]
    data = QueryDataset(items, PREPROCESSING.evaluation())
    assert [data[i]["case"] for i in range(len(data))] == ["case_01", "case_02"]
    assert names(data[0]["support"]) == ["case_00"] and data[0]["novel_labels"] == {3: "label 3"}
    alone = QueryDataset(items[:1], PREPROCESSING.evaluation())
    assert len(alone) == 1 and names(alone[0]["support"]) == ["case_00"] == [alone[0]["case"]]
    assert len(QueryDataset([], PREPROCESSING.evaluation())) == 0


def test_slices_are_a_stack():
    volume = torch.arange(2 * 3 * 4).view(1, 2, 3, 4)
    stack = slices(volume)
    assert stack.shape == (4, 1, 2, 3) and torch.equal(stack[2, 0], volume[0, :, :, 2]) and stack.is_contiguous()


def test_folds_of_the_items(folder, tmp_path):
    """As MONAI's Auto3DSeg writes them."""
    training = [{"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz", "fold": i % 2}
                for i, case in enumerate(CASES)]  # fmt: skip
    index = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").rename(tmp_path / "kept.json")
    try:
        (folder / "dataset.json").write_text(json.dumps(index | {"training": training}))
        assert names(read(folder, fold=1)["validation"]) == CASES[1::2]
    finally:
        (tmp_path / "kept.json").replace(folder / "dataset.json")


def test_a_scan_that_both_trains_and_is_segmented(folder, tmp_path):
    """Without folds in dataset.json, both are of `training`."""
    training = json.loads((folder / "dataset.json").read_text())["training"]
    copy = str(shutil.copy(folder / training[0]["image"], tmp_path / "zz.nii.gz"))
    for item in training:
        item |= {key: str(folder / item[key]) for key in ("image", "label")}
    training[8]["image"] = copy
    training[8].pop("case", None)
    with pytest.raises(DataError, match="in one split only, found the same voxels in zz"):
        read(change(folder, tmp_path, training=training))
