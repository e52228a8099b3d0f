"""The training episodes of data.py."""

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandAdjustContrastd, RandAffined
from torch.utils.data import DataLoader

from apscl_fewshot import superpixels as module
from apscl_fewshot.data import EpisodeDataset
from apscl_fewshot.superpixels import Superpixels
from common.data import DataError

EXTENTS = {"a": {1: (1, 7), 2: (2, 6), 3: (3, 5)}, "b": {1: (0, 5), 2: (4, 8), 3: (6, 8)}, "c": {1: (2, 8), 2: (1, 3)}}


@pytest.fixture
def build(make_scan):
    """An episode data set over three scans of nine slices; the label is of the network's size."""
    scans = {case: make_scan(case, extents, native=(32, 32)) for case, extents in EXTENTS.items()}

    def transform(item):
        scan = scans[item["image"]]
        return {"image": scan["image"].permute(1, 2, 3, 0), "label": scan["label"].permute(1, 2, 0)[None].float()}

    def build(cases="abc", **options):
        items = [{"image": case, "label": case} for case in cases]
        return EpisodeDataset(items, transform, **{"novel_labels": [3], "episodes": 30, "min_fg": 4, **options})

    build.scans = scans
    return build


@pytest.fixture(autouse=True)
def small_superpixels(monkeypatch):
    """Regions of slices of 32 x 32."""
    monkeypatch.setattr(module, "SETTINGS", {"scale": 30.0, "sigma": 0.8, "min_size": 20})
    monkeypatch.setattr(module, "MAX_SIZE", 600)
    monkeypatch.setattr(module, "AREA", 32 * 32)


def augmentation():
    """Moves a slice by up to most of its width: many views are empty."""
    mode = ["bilinear", "nearest"]
    return Compose([
        RandAffined(["image", "mask"], prob=1.0, translate_range=20, padding_mode="zeros", mode=mode),
        RandAdjustContrastd("image", prob=1.0, gamma=(0.5, 1.5)),
    ])  # fmt: skip


def rows(episode):
    """(scan, slice) of supports and query, the query last."""
    return [(name[0], int(name[2:-1])) for name in episode["case"].split()]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_episode_depends_on_seed_epoch_and_index_alone(build, share):
    options = {"augmentation": augmentation(), "superpixels": Superpixels(), "superpixel_share": share, "flip": True}
    data, same = build(**options), build(**{**options, "augmentation": augmentation()})
    forward = [data[i] for i in range(10)]
    torch.manual_seed(99)
    np.random.seed(99)
    for i in reversed(range(10)):
        assert_equal(same[i], forward[i])
    data.set_epoch(1)
    assert any(data[i]["case"] != forward[i]["case"] for i in range(10))
    data.set_epoch(0)
    assert_equal(data[3], forward[3])
    other = build(**options, seed=1)
    assert any(other[i]["case"] != forward[i]["case"] for i in range(10))


def test_workers_and_batches_do_not_change_the_episodes(build):
    data = build(augmentation=augmentation(), episodes=8)
    alone = [episode for episode in DataLoader(data, batch_size=None)]
    batches = list(DataLoader(data, batch_size=2, num_workers=2))
    for i, episode in enumerate(alone):
        batch = {key: value[i % 2] for key, value in batches[i // 2].items()}
        assert_equal({**batch, "label": int(batch["label"])}, episode)


@pytest.mark.parametrize("shots", [1, 2])
def test_shapes_and_contents(build, shots):
    data = build(shots=shots, novel_labels=[1])
    assert len(data) == 30
    for i in range(30):
        episode = data[i]
        assert episode["support"].shape == episode["support_mask"].shape == (shots, 1, 32, 32)
        assert episode["query"].shape == episode["query_mask"].shape == (1, 32, 32)
        chosen = rows(episode)
        assert len(set(chosen)) == shots + 1 and episode["label"] in (2, 3)
        images, masks = [*episode["support"], episode["query"]], [*episode["support_mask"], episode["query_mask"]]
        for (case, z), image, mask in zip(chosen, images, masks, strict=True):
            assert torch.equal(image, build.scans[case]["image"][z])
            assert torch.equal(mask[0], (build.scans[case]["label"][z] == episode["label"]).float())


def test_masks_are_never_empty(build):
    """Not with an augmentation that pushes organs out, not with min_fg at its least."""
    options = {"augmentation": augmentation(), "superpixels": Superpixels(), "superpixel_share": 0.5, "flip": True}
    for data in (build(episodes=150, **options), build(episodes=150, min_fg=0)):
        for i in range(150):
            episode = data[i]
            assert episode["support_mask"].flatten(1).any(1).all() and episode["query_mask"].any()
            assert set(episode["support_mask"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize(("novel", "base"), [([3], {1, 2}), ([1, 3], {2}), ([], {1, 2, 3}), (None, {1, 2})])
def test_a_novel_label_is_never_the_foreground(build, novel, base):
    """By default the highest label is novel."""
    data = build(novel_labels=novel, episodes=60)
    assert {data[i]["label"] for i in range(60)} == base == set(data.table)


def test_slices_that_show_a_novel_label_are_drawn_too(build):
    """As background: it is never the foreground."""
    data = build()
    shown = {row for i in range(150) for row in rows(data[i])}
    assert {("a", z) for z in (3, 4, 5)} | {("b", z) for z in (6, 7, 8)} <= shown


def test_slices_with_too_little_of_the_organ_are_not_drawn(build, caplog):
    """Organ 1 covers 10 x 8 pixels of a slice, organ 2 has 8 x 7."""
    assert set(build(min_fg=56).table) == {1, 2} and not caplog.messages
    assert set(build(min_fg=80).table) == {1}
    assert caplog.messages == ["not trained on label 2: no more than 1 slices of 80 pixels (min_fg)."]
    with pytest.raises(DataError, match=r"labels \[1, 2, 3\] without the novel ones \[3\].* 1 slices of 81 pixels"):
        build(min_fg=81)


# organ 2: (scan, slice, third of the organ) of all its slices, by hand
TABLE_2 = [
    (0, 2, 0), (0, 3, 0), (0, 4, 1), (0, 5, 2), (0, 6, 2),
    (1, 4, 0), (1, 5, 0), (1, 6, 1), (1, 7, 2), (1, 8, 2),
    (2, 1, 0), (2, 2, 1), (2, 3, 2),
]  # fmt: skip


def test_the_table_of_slices(build):
    assert build().table[2] == TABLE_2


@pytest.mark.parametrize("pairing", ["any", "same_part"])
def test_pairings(build, pairing):
    data = build(novel_labels=[1, 3], pairing=pairing, episodes=400)
    found = {tuple(("abc".index(case), z) for case, z in rows(data[i])) for i in range(400)}
    expected = set()
    for scan, z, part in TABLE_2:
        for other, y, its_part in TABLE_2:
            wanted = {
                "any": (scan, z) != (other, y),
                "same_part": scan != other and part == its_part,
            }[pairing]
            expected |= {((other, y), (scan, z))} if wanted else set()
    assert found <= expected and len(found) > 0.85 * len(expected)


def test_a_pairing_that_is_impossible_takes_other_slices(build):
    """One scan alone; then more shots than a third of the organ has."""
    (first, y), (second, z) = rows(build("a", pairing="same_part")[0])
    assert first == second == "a" and y != z
    for i in range(30):
        chosen = rows(build("ab", pairing="same_part", shots=4, novel_labels=[1, 3])[i])
        assert len(set(chosen)) == 5 and chosen[-1][0] not in {case for case, _ in chosen[:-1]}


@pytest.mark.parametrize(("share", "expected"), [(0.0, set(range(1, 3))), (1.0, {0}), (0.5, {0, 1, 2})])
def test_share_of_superpixels(build, share, expected):
    data = build(superpixels=Superpixels(), superpixel_share=share, episodes=80)
    labels = [data[i]["label"] for i in range(80)]
    assert set(labels) == expected
    assert abs(labels.count(0) / 80 - share) < 0.2


def test_a_superpixel_episode_shows_one_region_twice(build):
    data = build(superpixels=Superpixels(), superpixel_share=1.0, shots=2)
    for i in range(10):
        episode = data[i]
        assert len(set(rows(episode))) == 1 and episode["label"] == 0
        for image, mask in zip(episode["support"], episode["support_mask"], strict=True):
            assert torch.equal(image, episode["query"]) and torch.equal(mask, episode["query_mask"])
    moved = build(superpixels=Superpixels(), superpixel_share=1.0, augmentation=augmentation())[0]
    assert not torch.equal(moved["support"][0], moved["query"])


def test_superpixels_do_for_classes(build):
    data = build(novel_labels=[1, 2, 3], superpixels=Superpixels(), superpixel_share=0.3)
    assert not data.table and {data[i]["label"] for i in range(10)} == {0}
    with pytest.raises(DataError, match="no class to train on.*name fewer, lower min_fg, or add superpixels"):
        build(novel_labels=[1, 2, 3])
    with pytest.raises(DataError, match="no class to train on"):
        build(novel_labels=[1, 2, 3], superpixels=Superpixels(), superpixel_share=0.0)


def test_without_a_share_no_superpixel_is_searched_for(build, monkeypatch):
    monkeypatch.setattr(module, "MAX_SIZE", 0)  # a search would find none and refuse
    build(superpixels=Superpixels(), superpixel_share=0.0)


def test_flips_mirror_support_and_query_together(build):
    plain, flipped = build(episodes=40), build(episodes=40, flip=True)
    turned = 0
    for i in range(40):
        one, other = plain[i], flipped[i]
        mirror = {key: v.flip(-2) if isinstance(v, torch.Tensor) else v for key, v in one.items()}
        same = torch.equal(one["query"], other["query"])
        assert_equal(one if same else mirror, other)  # left-right is the first axis of a slice in RAS
        turned += not same
    assert 10 < turned < 30


def test_lists_of_images_and_labels_alone(make_scan, tmp_path, write_scans):
    """MONAI Label's own list: the case is the file's name."""
    folder = write_scans(tmp_path / "set", ["first", "second"])
    files = [(folder / f"{kind}s", kind) for kind in ("image", "label")]
    items = [{kind: str(place / f"{case}.nii.gz") for place, kind in files} for case in ("first", "second")]

    def transform(item):
        name = item["image"].split("/")[-1].removesuffix(".nii.gz")
        scan = make_scan(name, native=(32, 32))
        return {"image": scan["image"].permute(1, 2, 3, 0), "label": scan["label"].permute(1, 2, 0)[None]}

    data = EpisodeDataset(items, transform, min_fg=4)
    assert {name.split("[")[0] for i in range(20) for name in data[i]["case"].split()} == {"first", "second"}
    assert {data[i]["label"] for i in range(20)} == {1, 2}


def test_another_pairing_is_refused(build):
    with pytest.raises(ValueError, match="pairing: expected one of same_part, any, found 'adjacent'"):
        build(pairing="adjacent")
