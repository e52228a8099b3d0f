"""What the data set gives: draws for training and batches."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandFlipd, Randomizable

from common.data import DataError
from sgcg_dg.amplitude import RandAmplitudeMixd
from sgcg_dg.data import DomainBatchSampler, DomainDataset, share_out


def given(item):
    """A transform for data that is in memory."""
    return {"image": item["image"], "label": item["label"]}


def item(domain, value, size=(6, 5)):
    """A flat image whose value tells which one it is; its label is that value's parity."""
    label = torch.full((1, *size), int(value) % 2)
    return {"image": torch.full((1, *size), float(value)), "label": label, "domain": domain, "case": f"{domain}{value}"}


UNEQUAL = [item(domain, first + i) for domain, first, count in (("b", 10, 20), ("a", 0, 2), ("c", 40, 4))
           for i in range(count)]  # fmt: skip


class Recorded(Randomizable):
    """A mix that keeps who met whom, and what it drew."""

    def __init__(self):
        self.pairs = []

    def __call__(self, item):
        self.pairs.append((float(item["image"].mean()), float(item["partner"].mean())))
        return item | {"image_ram": item["partner"] + self.R.random()}


def test_a_draw_is_a_function_of_seed_epoch_and_number():
    """Whatever was drawn before, in whatever order; a number alone is an index and a draw."""
    data = [{**item("ab"[i % 2], i), "image": torch.rand(3, 12, 10)} for i in range(6)]

    def make(seed=0, epoch=0):
        mix = RandAmplitudeMixd("image")
        flip = Compose([RandFlipd(["image", "label"], 0.5, axis) for axis in (0, 1)])
        dataset = DomainDataset(data, given, augmentation=flip, mix=mix, seed=seed)
        dataset.set_epoch(epoch)
        return dataset

    def views(dataset, keys):
        return {key: torch.cat([dataset[key][view] for view in ("image", "image_ram")]) for key in keys}

    keys = [(3, 7), (3, 8), (0, 7), (3, 3), (1, 20), (1, 21), (1, 22), (1, 23)]
    first = views(make(), keys)
    again = make()
    views(again, reversed(keys))
    for key, found in views(again, keys).items():
        assert torch.equal(found, first[key])
    assert torch.equal(make()[3]["image_ram"], make()[3, 3]["image_ram"])
    assert len({tuple(first[3, draw].flatten().tolist()) for draw in (7, 8, 3)}) == 3
    for other in (make(seed=1), make(epoch=1)):
        assert not any(torch.equal(found[3:], first[key][3:]) for key, found in views(other, keys).items())


def test_an_item():
    mix = Recorded()
    dataset = DomainDataset(UNEQUAL, given, mix=mix)
    assert len(dataset) == 26 and dataset.names == ["a", "b", "c"]
    found = dataset[21, 5]
    assert set(found) == {"image", "image_ram", "label", "domain", "case"}
    assert found["case"] == "a1" and found["domain"] == 0 and (found["image"] == 1).all()
    assert found["label"].dtype == torch.int64 and (found["label"] == 1).all()
    assert all(type(found[key]) is torch.Tensor for key in ("image", "image_ram", "label"))
    plain = DomainDataset(UNEQUAL, given)[21]
    assert set(plain) == {"image", "label", "domain", "case"} and torch.equal(plain["image"], found["image"])


def test_partners_come_from_other_domains_each_as_often():
    """Whatever their sizes; then each image of a domain as often; always as it is stored."""
    mix = Recorded()
    flip = Compose([lambda item: item | {"image": item["image"] + 1000}])  # augments the image alone
    dataset = DomainDataset(UNEQUAL, given, augmentation=flip, mix=mix)
    for draw in range(1200):
        dataset[3 * draw % 26, draw]
    met = {own: {} for own in "abc"}
    for image, partner in mix.pairs:
        own, other = ("abc"[(value >= 10) + (value >= 40)] for value in (image - 1000, partner))
        assert own != other and partner < 1000
        met[own].setdefault(other, []).append(partner)
    for own, others in met.items():
        total = sum(map(len, others.values()))
        assert set(others) == set("abc") - {own}
        # four standard deviations of a fair coin
        assert all(abs(len(values) / total - 0.5) < 2 / total**0.5 for values in others.values())
    for own, other, size in (("a", "b", 20), ("b", "a", 2), ("b", "c", 4)):
        values, counts = np.unique(met[own][other], return_counts=True)
        assert len(values) == size and counts.max() < 3 * counts.min() + 6


def test_partners_of_one_domain_alone_are_other_images():
    mix, data = Recorded(), UNEQUAL[:20]
    dataset = DomainDataset(data, given, mix=mix)
    for draw in range(300):
        dataset[draw % len(data), draw]
    assert all(one != other for one, other in mix.pairs)
    assert {other for _, other in mix.pairs} == {float(entry["image"].mean()) for entry in data}


def test_an_image_alone_is_its_own_partner():
    mix = Recorded()
    DomainDataset([item("a", 7)], given, mix=mix)[0]
    assert mix.pairs == [(7, 7)]


def test_scans_are_taken_slice_by_slice():
    image, label = torch.rand(1, 6, 5, 4), torch.randint(0, 3, (1, 6, 5, 4))
    data = [{"image": image, "label": label, "domain": "a", "case": "v"}, item("b", 1)]
    dataset = DomainDataset(data, given)
    assert len(dataset) == 5 and [dataset[i]["case"] for i in range(5)] == ["v", "v", "v", "v", "b1"]
    assert [dataset[i]["domain"] for i in range(5)] == [0, 0, 0, 0, 1]
    for z in range(4):
        assert torch.equal(dataset[z]["image"], image[..., z]) and torch.equal(dataset[z]["label"], label[..., z])


def test_no_data_is_refused():
    with pytest.raises(DataError, match="0 images to train on: `training` of the chosen domains is empty"):
        DomainDataset([], given)


def test_a_list_of_images_and_labels_alone():
    """What MONAI Label hands over."""
    data = [{key: entry[key] for key in ("image", "label")} for entry in UNEQUAL[:3]]
    dataset = DomainDataset(data, given, mix=Recorded())
    assert dataset.names == ["unknown"] and dataset[1]["domain"] == 0 and "image_ram" in dataset[1]


# --- batches ---


def batches(dataset, iterations=6, epoch=0, batch_size=6, **options):
    sampler = DomainBatchSampler(dataset, batch_size, iterations, **options)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler) == iterations
    return found


@pytest.mark.parametrize(
    ("batch_size", "policy", "counts"),
    # the domains a, b, c hold 2, 20 and 4 of 26
    [(9, "equal", [3, 3, 3]), (6, "equal", [2, 2, 2]), (8, "equal", [3, 3, 2]), (26, "proportional", [2, 20, 4]),
     (13, "proportional", [2, 9, 2]), (16, "proportional", [2, 12, 2]), (6, "proportional", [2, 2, 2])],
)  # fmt: skip
def test_every_domain_has_a_block_of_two_or_more(batch_size, policy, counts):
    dataset = DomainDataset(UNEQUAL, given)
    found = batches(dataset, batch_size=batch_size, policy=policy)
    for batch in found:
        domains = [dataset.domains[index] for index, _ in batch]
        assert domains == [d for d, count in enumerate(counts) for _ in range(count)]
    draws = [draw for batch in found for _, draw in batch]
    assert draws == list(range(6 * batch_size))


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([1, 1, 1], 8, [3, 3, 2]),  # what is left over goes to the first ones
        ([1, 1, 1, 1], 11, [3, 3, 3, 2]),
        ([101, 159, 400, 99], 16, [2, 3, 9, 2]),  # shares of 2.13, 3.35, 8.43 and 2.09: the largest remainder
        ([45, 59, 50], 33, [10, 12, 11]),  # 9 9/14, 12 9/14 and 10 10/14: of equal remainders the first
        ([3, 1], 8, [6, 2]),
        ([1, 50, 50], 8, [2, 3, 3]),
        ([1, 50, 50], 7, [2, 3, 2]),  # two for the small domain, at the others' cost, the last of them first
        ([7], 5, [5]),
    ],
)
def test_shares_of_a_batch_by_hand(sizes, total, expected):
    assert share_out(sizes, total).tolist() == expected


def test_shares_add_up_and_give_two_or_more_to_each():
    """Whatever the sizes; a larger domain never gets less, and none that has its two is a whole image off its share."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        sizes = rng.integers(1, 60, rng.integers(1, 7))
        least = 2 * len(sizes)
        for total in (least, *rng.integers(least, 64, 3)):
            counts = share_out(sizes, total)
            assert counts.sum() == total and counts.min() >= 2
            rising = np.lexsort((-np.arange(len(sizes)), sizes))  # of equal sizes the last one has least
            assert (np.diff(counts[rising]) >= 0).all()
            wanted = sizes * total / sizes.sum()
            if wanted.min() >= 2:
                assert np.abs(counts - wanted).max() < 1


@pytest.mark.parametrize("policy", ["equal", "proportional"])
def test_a_batch_smaller_than_two_of_each_domain_is_refused(policy):
    text = "batch_size: expected 6 or more, 2 images of each of 3 domains, found 5; raise it, or name fewer source_"
    with pytest.raises(ValueError, match=text):
        DomainBatchSampler(DomainDataset(UNEQUAL, given), 5, 1, policy=policy)


def test_each_domain_is_reshuffled_for_ever():
    """Every image once in a pass, and each pass in an order of its own: no cycle of the same batches."""
    found = batches(DomainDataset(UNEQUAL, given), iterations=60)
    blocks = [[index for batch in found for index, _ in batch[first : first + 2]] for first in (0, 2, 4)]
    for stream, members in zip(blocks, ([20, 21], range(20), [22, 23, 24, 25]), strict=True):
        passes = [stream[i : i + len(members)] for i in range(0, len(stream), len(members))]
        assert all(sorted(one) == list(members) for one in passes)
        assert sum(one != other for one, other in pairwise(passes)) >= len(passes) // 4
    pairs_of_c = {frozenset(blocks[2][i : i + 2]) for i in range(0, 120, 2)}
    assert len(pairs_of_c) == 6  # who meets whom changes too: all pairs of four occur


def test_batches_depend_on_seed_epoch_and_process(monkeypatch):
    dataset = DomainDataset(UNEQUAL, given)
    first = batches(dataset)
    assert batches(dataset) == first
    assert batches(dataset, epoch=1) != first and batches(dataset, seed=1) != first
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert batches(dataset) != first
    with pytest.raises(ValueError, match="policy must be one of .*, got 'fair'"):
        DomainBatchSampler(dataset, 6, 1, policy="fair")


def test_workers_do_not_change_the_batches():
    data = [{**item("abc"[i % 3], i), "image": torch.rand(3, 12, 10)} for i in range(9)]
    dataset = DomainDataset(data, given, augmentation=RandFlipd(["image", "label"], 0.5, 0),
                            mix=RandAmplitudeMixd("image"))  # fmt: skip
    sampler, epochs = DomainBatchSampler(dataset, 6, 3), []
    for workers in (0, 2):
        for epoch in (1, 2):
            dataset.set_epoch(epoch)
            sampler.set_epoch(epoch)
            epochs.append(list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers)))
    cases = [[batch.pop("case") for batch in epoch] for epoch in epochs]
    torch.testing.assert_close(epochs[:2], epochs[2:], rtol=0, atol=0)
    assert cases[:2] == cases[2:]
    assert epochs[0][0]["domain"].tolist() == [0, 0, 1, 1, 2, 2] and len(epochs[0]) == 3
    assert not torch.equal(epochs[0][0]["image_ram"], epochs[1][0]["image_ram"])
