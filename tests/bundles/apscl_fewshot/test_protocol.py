import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from torch import nn

from apscl_fewshot.adaptation import Adaptation
from apscl_fewshot.decoders import ADNetDecoder, ALPNetDecoder, PANetDecoder
from apscl_fewshot.evaluator import FewShotEvaluator
from apscl_fewshot.protocol import (
    PROTOCOLS,
    SupportBank,
    choose_support,
    copy_mask,
    embed_slices,
    extent,
    predict,
    segment,
    slice_key,
)
from common.data import DataError

FOUR = {1: (1, 7), 2: (2, 6), 3: (3, 5), 4: (4, 8)}


def masks_of(scan, label, *where):
    return (scan["label"][list(where)] == label)[:, None].float()


@pytest.mark.parametrize("decoder", [None, PANetDecoder(), ALPNetDecoder(), ADNetDecoder()])
def test_a_cached_support_equals_one_that_is_read_again(make_network, make_scan, decoder):
    network, support, query = make_network(decoder=decoder).eval(), make_scan("support"), make_scan("query")
    parts = [0, 0, 1, 1, 2, 2, 0, 1, 2]
    with torch.no_grad():
        bank = SupportBank(network, [support], [1, 3])
        for label, chosen in ((1, (2, 4, 6)), (3, (3, 4, 5))):  # 1/6, 3/6, 5/6 of slices 1..7, of 3..5
            odds = segment(network, bank, network.embed(query["image"]), label, [32, 32], parts)
            for z, part in enumerate(parts):
                own = support["image"][chosen[part]][None, None], masks_of(support, label, chosen[part])[None]
                logits = network(*own, query["image"][z : z + 1])[0][0]
                torch.testing.assert_close(odds[z], logits[1] - logits[0], rtol=0, atol=1e-5)


def test_several_classes_at_once_equal_one_after_another(network, make_scan):
    support, query = make_scan("support", FOUR), make_scan("query", FOUR)
    with torch.no_grad():
        embedded, together = network.embed(query["image"]), SupportBank(network, [support], list(FOUR))
        for label in FOUR:
            alone = SupportBank(network, [support], [label])
            for parts in (None, np.zeros(9, int)):
                found = [segment(network, bank, embedded, label, [40, 36], parts) for bank in (together, alone)]
                torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_several_shots_make_one_code(network, make_scan):
    scans = [make_scan("one"), make_scan("two", {1: (0, 2), 2: (5, 8), 3: (1, 1)})]
    bank = SupportBank(network, scans, [1, 2])
    assert [len(bank.codes[label]) for label in (1, 2)] == [3, 3]
    # the middles of 1..7 and of 0..2; the keys are means over the shots
    images = torch.stack([scans[0]["image"][4], scans[1]["image"][1]])
    masks = torch.cat([masks_of(scans[0], 1, 4), masks_of(scans[1], 1, 1)])
    with torch.no_grad():
        features, frames = network.embed(images)
        expected = network.condition(features, frames, masks)
    assert bank.codes[1][1].keys() == expected.keys() == {"prototypes", "guide", "position"}
    torch.testing.assert_close(bank.codes[1][1], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(bank.keys[1][1], slice_key(features).mean(0), rtol=0, atol=1e-5)


def test_one_pass_of_the_encoder_serves_all_classes_and_protocols(network, make_scan):
    support, query, seen = make_scan("support", FOUR), make_scan("query", FOUR), []
    network.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    evaluator = FewShotEvaluator(device="cpu", val_data_loader=[], network=network, model={})
    names = {label: str(label) for label in FOUR}
    entries = evaluator.segment_query({**query, "support": [support], "novel_labels": names}, list(PROTOCOLS)[:1])
    # support slices 2, 4, 6; 2, 4, 6; 3, 4, 5; 4, 6, 8: six different ones
    assert len(entries) == 4 and sum(seen) == len(query["image"]) + 6
    evaluator.segment_query({**query, "support": [support], "novel_labels": names}, ["parts3", "no_oracle"])
    assert sum(seen) == 2 * len(query["image"]) + 6  # the bank is still there


class Marked(nn.Module):
    """A network whose log-odds tell the height of the support slice that was used; the second channel holds heights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def embed(self, images):
        return images[:, :1], images[:, 1, 0, :]

    def condition(self, features, frames, masks):
        return {"height": frames[:, 0].mean()}

    def decode(self, features, frames, code, size):
        odds = code["height"].expand(len(features), *size)
        return torch.stack([torch.zeros_like(odds), odds], dim=1)


def stack(looks):
    """Slices that look like patterns number ``looks``."""
    patterns = torch.randn(30, 4, 4, generator=torch.Generator().manual_seed(0))
    heights = torch.arange(float(len(looks)))[:, None, None].expand(-1, 4, 4)
    return torch.stack([patterns[list(looks)], heights], dim=1)


def labelled(depth, first, last, label=5):
    volume = torch.zeros(depth, 4, 4, dtype=torch.uint8)
    volume[first : last + 1, 1:3, 1:3] = label
    return volume


def scored(monkeypatch, protocol, support, looks, truth):
    """Heights of the support slices behind the scored slices, the truth, and the first slice."""
    network, odds = Marked(), []
    monkeypatch.setattr("apscl_fewshot.protocol.segment", lambda *args: odds.append(segment(*args)) or odds[-1])
    bank = SupportBank(network, [support], [5], PROTOCOLS[protocol])
    predicted, truth, first = predict(network, bank, network.embed(stack(looks)), truth, 5, protocol)
    assert torch.equal(predicted, odds[0] > 0) and predicted.shape == truth.shape
    return odds[0][:, 0, 0].tolist(), truth, first


@pytest.mark.parametrize(
    ("protocol", "expected", "first", "last"),
    # the support's organ is in slices 2..10: at 1/6, 3/6 and 5/6 of them are 3, 6 and 9
    [
        ("parts3", [3, 3, 6, 6, 9, 9], 3, 8),  # thirds of 5 / 3 slices from 3 to 8
        ("ep2", [6] * 9, 0, 8),
        ("no_oracle", [9, 9, 3, 3, 6, 6, 6, 3, 9], 0, 8),  # each takes the one it looks like
    ],
)
def test_which_slices_are_scored_with_which_support_slice(monkeypatch, protocol, expected, first, last):
    support = {"image": stack(range(12)), "label": labelled(12, 2, 10), "case": "support"}
    looks, truth = [9, 9, 3, 3, 6, 6, 6, 3, 9], labelled(9, 3, 8)
    heights, kept, start = scored(monkeypatch, protocol, support, looks, truth)
    assert heights == expected and start == first and torch.equal(kept, truth[first : last + 1] == 5)


@pytest.mark.parametrize("protocol", [name for name, parts in PROTOCOLS.items() if parts])
def test_volumes_and_organs_of_one_slice(monkeypatch, protocol, network, make_scan):
    support = {"image": stack([4]), "label": labelled(1, 0, 0), "case": "support"}
    assert scored(monkeypatch, protocol, support, [7], labelled(1, 0, 0))[0] == [0]
    heights, kept, first = scored(monkeypatch, protocol, support, [1, 2, 3], labelled(3, 1, 1))
    assert heights == [0] * len(kept) and (first, len(kept)) == ((1, 1) if protocol == "parts3" else (0, 3))
    thin = make_scan("thin", {1: (0, 0)}, depth=1)
    bank = SupportBank(network, [thin], [1], PROTOCOLS[protocol])
    predicted, truth, _ = predict(network, bank, network.embed(thin["image"]), thin["label"], 1, protocol)
    assert predicted.shape == truth.shape == (1, 40, 36)
    assert torch.equal(copy_mask(thin, thin["label"], 1, protocol) > 0, truth)


def test_looks_do_not_depend_on_gain_or_offset():
    features = torch.randn(2, 3, 8, 8)
    key = slice_key(features)
    assert key.shape == (2, 48)
    torch.testing.assert_close(key.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(slice_key(3 * features + 7), key, rtol=0, atol=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dice_of_a_scan_is_that_of_the_whole_volume(network, make_scan, protocol):
    """TP, FP and FN summed over slices, and MONAI's metric on the concatenated slices, say the same."""
    support, query = make_scan("support"), make_scan("query", {1: (0, 5), 3: (2, 7)})
    evaluator = FewShotEvaluator(device="cpu", val_data_loader=[], network=network, model={}, distances=False,
                                 adaptation=Adaptation(steps=2))  # fmt: skip
    item = {**query, "support": [support], "novel_labels": {1: "one", 3: "three"}}
    for entry in evaluator.segment_query(item, [protocol]):
        predicted, truth = entry["pred"][0] > 0, entry["label"][0] > 0
        tp, fp, fn = (int(x.sum()) for x in (predicted & truth, predicted & ~truth, ~predicted & truth))
        dice = evaluator.entry_row(entry, item)["dice"]
        assert dice == pytest.approx(2 * tp / (2 * tp + fp + fn)) and tp > 0 < fp + fn
        metric = DiceMetric(include_background=True)(predicted[None, None].float(), truth[None, None].float())
        assert dice == pytest.approx(metric.item())
        first, last = {"parts3": {"one": (0, 5), "three": (2, 7)}[entry["structure"]]}.get(protocol, (0, 8))
        label = {"one": 1, "three": 3}[entry["structure"]]
        assert torch.equal(truth, query["label"][first : last + 1].permute(1, 2, 0) == label)


def test_a_support_without_a_class_is_named_with_all_others(network, make_scan):
    scans = [make_scan("full"), make_scan("half", {1: (1, 7), 2: (2, 6)}), make_scan("bare", {})]
    with pytest.raises(DataError) as error:
        SupportBank(network, scans, [1, 3])
    lines = str(error.value).splitlines()[1:]
    assert [line.split(",")[0].strip() for line in lines] == [
        "bare: expected label 1 in the support mask", "half: expected label 3 in the support mask",
        "bare: expected label 3 in the support mask",
    ]  # fmt: skip
    assert "found [0, 1, 2]" in lines[1]
    rows = choose_support(scans[:2], [1, 2], 3)
    assert rows == {1: [[(0, 2), (1, 2)], [(0, 4), (1, 4)], [(0, 6), (1, 6)]],
                    2: [[(0, 2), (1, 2)], [(0, 4), (1, 4)], [(0, 6), (1, 6)]]}  # fmt: skip


def test_the_copied_mask_by_hand():
    """The support's organ is a pixel that moves down a column: slice z has row z."""
    label = torch.zeros(6, 6, 2, dtype=torch.uint8)
    for z in range(1, 6):
        label[z, z, 0] = 5
    scan, truth = {"label": label}, torch.zeros(4, 6, 2, dtype=torch.uint8)
    truth[1:, 0, 1] = 5
    moved = {}
    for protocol in PROTOCOLS:
        copied = copy_mask(scan, truth, 5, protocol)
        assert not copied[:, :, 1].any()
        moved[protocol] = [row.nonzero().flatten().tolist() for row in copied[:, :, 0]]
    # organ in 1..5: at 1/6, 3/6, 5/6 are 1, 3, 5; the query's three slices are one part each
    assert moved["parts3"] == [[1], [3], [5]]
    assert moved["ep2"] == [[3]] * 4
    assert moved["no_oracle"] == [[], [1], [3], [4]]  # slices 0, 1.5, 3, 4.5 of the support


def test_the_copied_mask_is_fitted_to_the_query():
    scan = {"label": labelled(3, 0, 2)}
    copied = copy_mask(scan, torch.full((3, 8, 12), 5, dtype=torch.uint8), 5, "parts3")
    expected = torch.zeros(3, 8, 12)
    expected[:, 2:6, 3:9] = 1
    torch.testing.assert_close(copied, expected)
    speck = {"label": torch.zeros(3, 64, 64, dtype=torch.uint8)}
    speck["label"][:, 1, 1] = 5  # too small for the query's grid
    for protocol in PROTOCOLS:
        assert not copy_mask(speck, torch.full((3, 8, 12), 5, dtype=torch.uint8), 5, protocol).any()


def test_extent():
    assert extent(labelled(9, 3, 6) > 0) == (3, 6) and extent(labelled(1, 0, 0) > 0) == (0, 0)


def test_slices_are_embedded_a_few_at_a_time(network, make_scan):
    images, seen = make_scan(depth=9)["image"], []
    network.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    with torch.no_grad():
        found, whole = embed_slices(network, images, batch=4), network.embed(images)
    assert seen == [4, 4, 1, 9]
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
