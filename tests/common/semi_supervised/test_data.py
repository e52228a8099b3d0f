"""Which cases keep their labels, and what a draw, a batch and an epoch are made of."""

import json
import logging
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandFlipd, RandGaussianNoised, RandSpatialCropd

from common.data import DataError, Preprocessing
from common.semi_supervised import PairDataset, PairSampler, read_semi_supervised

BOTH, OPTIONS = ["image", "label"], {"allow_missing_keys": True}
TRANSFORM = Compose([LoadImaged(BOTH, **OPTIONS), EnsureChannelFirstd(BOTH, **OPTIONS)])
LABELS = {"0": "background", "1": "cavity", "2": "wall", "3": "valve"}
# patients with their two time points; what each label shows
TRAINING = {"p1": (1, 2, 3), "p2": (1, 2), "p3": (1,), "p4": (1, 2, 3)}


def write(folder, training=None, unlabeled=("u1", "u2", "u3"), validation=("v1",), test=()):
    """A data set of volumes with two time points a patient; the labels of ``unlabeled`` and one of p4 are garbage."""
    splits = {"training": training or TRAINING, "unlabeled": dict.fromkeys(unlabeled, (1,)),
              "validation": dict.fromkeys(validation, (1, 2, 3)), "test": dict.fromkeys(test, (1,))}  # fmt: skip
    index = {"name": "hearts", "modality": {"0": "MRI"}, "labels": LABELS}
    for split, cases in splits.items():
        index[split] = []
        for case, shown in cases.items():
            for frame in ("ed", "es"):
                rng = np.random.default_rng([*f"{case}{frame}".encode()])
                label = np.zeros((8, 7, 4), np.uint8)
                for number in shown:
                    label[2 * number - 1] = number
                item = {"case": case}
                for key, voxels in (("image", rng.integers(0, 255, label.shape).astype(np.uint8)), ("label", label)):
                    item[key] = f"{key}_{case}_{frame}.nii.gz"
                    folder.mkdir(exist_ok=True)
                    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / item[key])
                index[split].append(item)
        if split == "unlabeled":
            for item in index[split]:
                (folder / item["label"]).write_bytes(b"no label may be read here")
    (folder / "dataset.json").write_text(json.dumps(index))
    return folder


def read(folder, zoom=None, channels=1, **options):
    return read_semi_supervised(folder, Preprocessing(channels, zoom=zoom), **options)


@pytest.mark.parametrize(("options", "found"), [
    ({"spatial_dims": 2, "patch_size": [32, 32, 16]}, ["expected 2 lengths for slices", "[32, 32, 16]"]),
    ({"patch_size": [32, 32]}, ["expected 3 lengths for volumes (spatial_dims 3), found [32, 32]"]),
    ({"patch_size": [32, 0, 8], "zoom": [0.5, 0.5]}, ["[32, 0, 8]; zoom: expected a number above 0, or 3, one for"]),
    ({"zoom": 0}, ["zoom: expected", "found 0"]),
    ({"zoom": [0.5, 0, 1.0]}, ["zoom: expected", "found [0.5, 0, 1.0]"]),
    ({"patch_size": 32}, ["expected 3 lengths for volumes (spatial_dims 3), found 32"]),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused_together(folder, options, found):
    with pytest.raises(ValueError) as error:
        read(folder, **options)
    assert all(text in str(error.value) for text in found)
    assert read(folder, zoom=[0.5, 0.5, 1.0], spatial_dims=2, patch_size=(8, 8))["training"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hearts") / "set")


def change(folder, tmp_path, edit):
    """A copy of dataset.json after ``edit(index)``; the files stay where they are."""
    index = json.loads((folder / "dataset.json").read_text())
    edit(index)
    for split in ("training", "unlabeled", "validation", "test"):
        for item in index[split]:
            item |= {key: str(folder / item[key]) for key in ("image", "label") if key in item}
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    return tmp_path


def names(items):
    return list(dict.fromkeys(item["case"] for item in items))


def test_the_lists(folder):
    found = read(folder)
    assert set(found) == {"training", "unlabeled", "validation", "test", "labels", "facts", "names"}
    assert [len(found[key]) for key in ("training", "unlabeled", "validation", "test")] == [8, 6, 2, 0]
    assert names(found["training"]) == ["p1", "p2", "p3", "p4"] and names(found["unlabeled"]) == ["u1", "u2", "u3"]
    assert all(set(item) == {"image", "label", "case"} for item in found["training"] + found["validation"])
    assert all(set(item) == {"image", "case"} for item in found["unlabeled"])
    assert found["labels"] == {1: "cavity", 2: "wall", 3: "valve"}
    for split, listed in found["names"].items():
        assert listed == [item["image"].split("/")[-1] for item in found[split]]


def test_the_first_cases_keep_their_labels_with_all_their_images(folder):
    found = read(folder, labelled=2)
    assert names(found["training"]) == ["p1", "p2"] and len(found["training"]) == 4
    assert names(found["unlabeled"]) == ["u1", "u2", "u3", "p3", "p4"] and len(found["unlabeled"]) == 10
    assert all("label" not in item for item in found["unlabeled"])
    whole, all_kept = read(folder), read(folder, labelled=4)
    assert all(all_kept[key] == whole[key] for key in whole if key != "facts")
    assert {split: len(facts) for split, facts in found["facts"].items() if facts} == {
        "training": 4, "validation": 2, "unlabeled": 10}  # fmt: skip


@pytest.mark.parametrize("labelled", [0, -1, 5])
def test_more_labelled_cases_than_there_are(folder, labelled):
    with pytest.raises(DataError, match=f"labelled: expected 1 to 4, .*, found {labelled}"):
        read(folder, labelled=labelled)


@pytest.mark.parametrize("garbage", [True, False])
def test_labels_of_unlabelled_cases_are_never_opened(tmp_path, monkeypatch, garbage):
    """Neither those beside `unlabeled` nor those of training cases that lose theirs; garbage, or not there at all."""
    folder = write(tmp_path / "set")
    cases = ("u1", "u2", "u3", "p3", "p4")
    hidden = [folder / f"label_{case}_{frame}.nii.gz" for case in cases for frame in ("ed", "es")]
    for file in hidden:
        file.unlink()
        if garbage:
            file.write_bytes(b"no label may be read here")
    with pytest.raises(DataError, match="(?s)^4 problems.*label_p3_ed.*label_p4_es"):
        read(folder)
    opened, load = [], nib.load
    monkeypatch.setattr(nib, "load", lambda file, *args, **kwargs: (opened.append(str(file)), load(file))[1])
    found = read(folder, labelled=2)
    found["unlabeled"] = [item | {"label": str(hidden[0])} for item in found["unlabeled"]]  # even so
    dataset = PairDataset(found["training"], found["unlabeled"], TRANSFORM, None)
    sampler = PairSampler(dataset, 2, 10)
    drawn = [case for batch in DataLoader(dataset, batch_sampler=sampler) for case in batch["unlabeled_case"]]
    assert set(drawn) == set(cases)
    assert any("label_p1" in file for file in opened) and not {str(file) for file in hidden} & set(opened)


def test_without_unlabelled_cases(folder, tmp_path):
    bare = change(folder, tmp_path, lambda index: index.update(unlabeled=[]))
    with pytest.raises(DataError, match="expected unlabelled cases, found none in `unlabeled`.*supervised.json"):
        read(bare)
    assert read(bare, need_unlabeled=False)["unlabeled"] == []
    assert names(read(bare, labelled=1)["unlabeled"]) == ["p2", "p3", "p4"]
    assert names(read(folder, need_unlabeled=False)["unlabeled"]) == ["u1", "u2", "u3"]


@pytest.mark.parametrize(
    ("labelled", "text"),
    [(None, None), (3, "3 labelled cases show valve (p1 alone); "), (2, "2 labelled cases show valve (p1 alone); "),
     (1, "1 labelled cases show cavity (p1 alone), wall (p1 alone), valve (p1 alone); ")],
)  # fmt: skip
def test_a_class_that_few_labels_show_is_named(folder, caplog, labelled, text):
    """Two images of one patient count once."""
    with caplog.at_level(logging.WARNING):
        read(folder, labelled=labelled)
    assert len(caplog.records) == (text is not None)
    assert text is None or text in caplog.text


def test_a_class_that_no_label_shows_is_named(folder, tmp_path, caplog):
    def edit(index):
        index["training"] = [item for item in index["training"] if item["case"] in ("p2", "p3")]

    with caplog.at_level(logging.WARNING):
        read(change(folder, tmp_path, edit))
    assert "of the 2 labelled cases show wall (p2 alone), valve (none); " in caplog.text


def test_the_data_check_runs(folder, tmp_path):
    def edit(index):
        index["unlabeled"][0]["image"] = "nowhere.nii.gz"
        index["validation"].append({**index["training"][0], "case": "copy"})

    with pytest.raises(DataError, match="(?s)^2 problems.*nowhere.*the same voxels in p1"):
        read(change(folder, tmp_path, edit))
    with pytest.raises(DataError, match="(?s)expected 4 axes, the last of 3 .*, or set preprocessing_def::channels"):
        read(folder, channels=3)


@pytest.mark.parametrize(("labels", "found"), [
    ({"0": "background", "255": "x"}, r"1 to 1 without gaps, .*, found \[255\]; renumber them"),
    ({"4": "x", "1": "y", "2": "z"}, r"1 to 3 without gaps, .*, found \[1, 2, 4\]; renumber them"),
])  # fmt: skip
def test_labels_with_gaps_are_refused(folder, tmp_path, labels, found):
    with pytest.raises(DataError, match=f"dataset.json: expected `labels` numbered {found}"):
        read(change(folder, tmp_path, lambda index: index.update(labels=labels)))


def test_of_the_test_cases_those_with_a_label(tmp_path):
    folder = write(tmp_path / "set", test=("t1", "t2"))
    changed = change(folder, tmp_path, lambda index: [item.pop("label") for item in index["test"][:2]])
    assert names(read(changed)["test"]) == ["t2"]


# --- draws ---


def items(count, prefix, labelled, size=(10, 9, 8)):
    """In memory: image i of the labelled ones is noise around i, of the others around 100 + i."""
    torch.manual_seed(count + labelled)
    first = 0 if labelled else 100
    found = [{"image": first + i + 0.1 * torch.rand(1, *size), "case": f"{prefix}{i}"} for i in range(count)]
    return [item | {"label": (item["image"] > item["image"].mean()).float()} if labelled else item for item in found]


def pair_dataset(labelled=5, unlabeled=7, seed=0, epoch=0, **options):
    augmentation = Compose([RandFlipd(BOTH, 0.5, 0, **OPTIONS), RandSpatialCropd(BOTH, (4, 4, 4), **OPTIONS),
                            RandGaussianNoised("image", 0.5)])  # fmt: skip
    dataset = PairDataset(items(labelled, "l", True), items(unlabeled, "u", False), dict, seed=seed,
                          **{"augmentation": augmentation} | options)  # fmt: skip
    dataset.set_epoch(epoch)
    return dataset


def test_an_item():
    dataset = pair_dataset(augmentation=None)
    found = dataset[3, 5, 0]
    assert set(found) == {"image", "label", "case", "unlabeled", "unlabeled_case"} and len(dataset) == 5
    assert (found["case"], found["unlabeled_case"]) == ("l3", "u5")
    assert torch.equal(found["image"], items(5, "l", True)[3]["image"])
    assert torch.equal(found["unlabeled"], items(7, "u", False)[5]["image"])
    assert found["label"].dtype == torch.int64 and found["label"].shape == (1, 10, 9, 8)
    assert torch.equal(found["label"], (found["image"] > found["image"].mean()).long())
    assert all(type(found[key]) is torch.Tensor for key in ("image", "label", "unlabeled"))
    assert set(dataset[3, None, 0]) == set(dataset[3]) == {"image", "label", "case"}


def test_image_and_label_are_augmented_alike():
    dataset = pair_dataset(augmentation=Compose([RandFlipd(BOTH, 0.5, axis, **OPTIONS) for axis in range(3)]))
    for draw in range(8):
        found = dataset[1, 2, draw]
        assert torch.equal(found["label"], (found["image"] > found["image"].mean()).long())


def test_a_draw_is_a_function_of_seed_epoch_and_number():
    """Whatever was drawn before, in whatever order, and whichever image is its partner."""

    def views(dataset, keys):
        found = {key: dataset[key] for key in keys}
        return {key: torch.cat([item["image"], item["label"], item["unlabeled"]]) for key, item in found.items()}

    keys = [(3, 1, 7), (3, 1, 8), (0, 2, 7), (4, 0, 3)]
    first, again = views(pair_dataset(), keys), pair_dataset()
    views(again, reversed(keys))
    again.set_epoch(4)
    views(again, keys)
    again.set_epoch(0)
    for key, found in views(again, keys).items():
        assert torch.equal(found, first[key])
    assert len({tuple(found.flatten().tolist()) for found in first.values()}) == 4
    for other in (pair_dataset(seed=1), pair_dataset(epoch=1)):
        for key, found in views(other, keys).items():
            assert not torch.equal(found[:2], first[key][:2]) and not torch.equal(found[2], first[key][2])
    dataset = pair_dataset()
    assert torch.equal(dataset[3, None, 7]["image"], first[3, 1, 7][:1])
    assert torch.equal(dataset[0, 1, 7]["unlabeled"], first[3, 1, 7][2:])


def test_the_two_streams_are_augmented_independently():
    """Flips of the one tell nothing of the other's."""
    image = torch.arange(4.0)[None, :, None, None].expand(1, 4, 2, 2)
    flip = RandFlipd(BOTH, 0.5, 0, **OPTIONS)
    dataset = PairDataset([{"image": image, "label": image}], [{"image": image}], dict, flip)
    flips = Counter(tuple(bool(dataset[0, 0, draw][key][0, 0, 0, 0]) for key in ("image", "unlabeled"))
                    for draw in range(100))  # fmt: skip
    assert len(flips) == 4 and all(8 < count < 42 for count in flips.values())  # 25 each, deviation 4.3


def test_a_draw_has_one_thread_as_in_a_worker():
    before, seen = torch.get_num_threads(), []
    dataset = pair_dataset(augmentation=Compose([lambda item: (seen.append(torch.get_num_threads()), item)[1]]))
    torch.set_num_threads(2)
    try:
        dataset[0, 0, 0]
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_volumes_are_taken_slice_by_slice():
    dataset = pair_dataset(2, 1, augmentation=None, spatial_dims=2)
    assert len(dataset) == 16 and len(dataset.unlabeled) == 8
    volume = items(2, "l", True)[1]
    found = dataset[8 + 5, 3, 0]
    assert torch.equal(found["image"], volume["image"][..., 5]) and found["case"] == "l1"
    assert torch.equal(found["label"], volume["label"][..., 5].long())
    assert torch.equal(found["unlabeled"], items(1, "u", False)[0]["image"][..., 3])
    with pytest.raises(DataError, match="expected images of 2 axes, .*, found 4 axes"):
        PairDataset([{"image": torch.rand(1, 2, 2, 2, 2), "label": torch.ones(1, 2, 2, 2, 2)}], [], dict, None, 2)


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="0 images to train on: `training` is empty"):
        PairDataset([], items(3, "u", False), dict, None)


def test_a_list_of_images_and_labels_alone(folder):
    """What MONAI Label hands over."""
    data = [{key: item[key] for key in BOTH} for item in read(folder)["training"]]
    dataset = PairDataset(data, [], TRANSFORM, None)
    assert dataset[2]["case"] == data[2]["image"] and dataset[2]["image"].shape == (1, 8, 7, 4)


def test_volumes_are_read_once(folder, monkeypatch):
    found, opened = read(folder), []
    dataset = PairDataset(found["training"], found["unlabeled"],
                          lambda item: (opened.append(tuple(item)), TRANSFORM(item))[1], None)  # fmt: skip
    for draw in range(4):
        dataset[draw, draw, draw]
    assert opened == [("image", "label")] * 8 + [("image",)] * 6


# --- batches ---


def batches(dataset, batch_size=3, iterations=5, epoch=1, **options):
    sampler = PairSampler(dataset, batch_size, iterations, **options)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler) == iterations and all(len(batch) == batch_size for batch in found)
    assert [draw for batch in found for *_, draw in batch] == list(range(iterations * batch_size))
    return [(i, j) for batch in found for i, j, _ in batch]


def test_both_streams_cover_their_images_alike():
    """Every image once in each pass, also where a pass ends in the next epoch; every pass in an order of its own."""
    dataset = pair_dataset(5, 7, augmentation=None)
    pairs = [pair for epoch in range(1, 15) for pair in batches(dataset, epoch=epoch)]
    assert len(pairs) == 210
    for stream, size, start in (([i for i, _ in pairs], 5, 0), ([j for _, j in pairs], 7, 6)):  # epoch 0 had 15 draws
        passes = [tuple(stream[k : k + size]) for k in range(start, 210 - size, size)]
        assert all(sorted(one) == list(range(size)) for one in passes)
        assert len(set(passes)) > len(passes) / 2
    met = Counter(pairs)  # 35 pairs, 6 times each on average: who meets whom is chance
    assert len(met) > 30 and max(met.values()) < 20


def test_the_labelled_stream_is_the_same_without_unlabelled_images():
    one, other = batches(pair_dataset(5, 7)), batches(pair_dataset(5, 0))
    assert [i for i, _ in one] == [i for i, _ in other] and {j for _, j in other} == {None}


def test_batches_depend_on_seed_epoch_and_process(monkeypatch):
    dataset = pair_dataset()
    first = batches(dataset)
    assert batches(dataset) == first
    assert batches(dataset, epoch=2) != first and batches(dataset, seed=1) != first
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    found = [key for batch in PairSampler(dataset, 3, 5) for key in batch]
    assert [draw for *_, draw in found] == list(range(30, 45)) and [(i, j) for i, j, _ in found] != first
    assert sorted(i for i, _, _ in found[:5]) == list(range(5))


def test_workers_do_not_change_the_batches():
    dataset = pair_dataset()
    sampler, epochs = PairSampler(dataset, 2, 3), []
    for workers in (0, 2):
        for epoch in (1, 2):
            dataset.set_epoch(epoch)
            sampler.set_epoch(epoch)
            epochs.append(list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers)))
    assert [[batch.pop("case") + batch.pop("unlabeled_case") for batch in epoch] for epoch in epochs[:2]] == [
        [batch.pop("case") + batch.pop("unlabeled_case") for batch in epoch] for epoch in epochs[2:]]
    torch.testing.assert_close(epochs[:2], epochs[2:], rtol=0, atol=0)
    assert epochs[0][0]["image"].shape == epochs[0][0]["unlabeled"].shape == (2, 1, 4, 4, 4)
    assert not torch.equal(epochs[0][0]["image"], epochs[1][0]["image"])


