import json
import math
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.transforms import LoadImaged

from apscl_fewshot.adaptation import Adaptation
from apscl_fewshot.decoders import ADNetDecoder, ALPNetDecoder, PANetDecoder
from apscl_fewshot.inferer import CheckQueryd, Support, SupportedNetwork, UncertaintyInferer
from apscl_fewshot.protocol import SupportBank, embed_slices, segment
from common.data import DataError, Preprocessing
from common.engine import WeightsLoader, write_model_record

PREPROCESSING = Preprocessing(image_size=[32, 32])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_scans):
    return write_scans(tmp_path_factory.mktemp("support") / "set", ["one", "two"])


@pytest.fixture
def support(folder):
    return Support(str(folder), PREPROCESSING, [1, 3])


@pytest.fixture
def deployed(make_network, support):
    return SupportedNetwork(make_network(), support).eval()


def test_logits_are_those_of_the_protocol_without_an_oracle(make_network, deployed, support, make_scan):
    network, image = make_network().eval(), make_scan("query")["image"]
    with torch.no_grad():
        found, embedded = deployed(image), embed_slices(network, image)
        bank = SupportBank(network, support.scans, [1, 3])
        expected = [segment(network, bank, embedded, label, [32, 32]) for label in (1, 3)]
    assert found.shape == (9, 3, 32, 32) and not found[:, 0].any()
    torch.testing.assert_close(found[:, 1:], torch.stack(expected, dim=1), rtol=0, atol=1e-4)
    assert (found[:, 2] > 0).any() and (found[:, 2] < 0).any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prior": False},
        {"position": False, "prior": False},
        {"decoder": PANetDecoder()},
        {"decoder": ADNetDecoder()},
    ],
)
def test_the_scripted_network_equals_the_eager_one(make_network, support, tmp_path, options):
    network = SupportedNetwork(make_network(**options), support).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(tmp_path / "model.ts")
        loaded = torch.jit.load(tmp_path / "model.ts")
    for size in ((3, 1, 32, 32), (2, 1, 48, 40)):
        image = torch.randn(size)
        with torch.no_grad():
            found, expected = loaded(image), network(image)
        assert expected.abs().max() > 1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_was_learned_from_the_support_is_scripted_with_the_network(make_network, support, tmp_path):
    network = SupportedNetwork(make_network(), support, Adaptation(steps=3)).eval()
    before = [network.bank_prototypes.clone(), *network.parameters()]
    network.load_state_dict(make_network().state_dict())
    assert not torch.equal(before[0], network.bank_prototypes)  # it learns when weights are loaded, not before
    alone, expected = make_network().eval(), Adaptation(steps=3)
    prototypes, positions = expected(alone, support.scans, [1, 3])
    image = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        logits = alone.classify(*alone.embed(image), prototypes, positions, [32, 32])
        torch.testing.assert_close(network(image), logits, rtol=0, atol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(network).save(tmp_path / "model.ts")
            loaded = torch.jit.load(tmp_path / "model.ts")
        torch.testing.assert_close(loaded(image), logits, rtol=0, atol=1e-4)
    assert logits.shape == (2, 3, 32, 32)
    network.load_state_dict(make_network().state_dict())  # again from the same weights: the same network
    with torch.no_grad():
        torch.testing.assert_close(network(image), logits, rtol=0, atol=1e-5)


def test_local_prototypes_have_no_place_in_a_bank_of_fixed_size(make_network, support):
    with pytest.raises(ValueError, match="decoder: expected one whose code has a fixed size, found ALPNetDecoder"):
        SupportedNetwork(make_network(ALPNetDecoder()), support)


def test_the_state_dict_is_that_of_training(make_network, deployed):
    trained = make_network().state_dict()
    assert list(deployed.state_dict()) == list(trained)
    deployed.load_state_dict(trained, strict=True)
    make_network().load_state_dict(deployed.state_dict(), strict=True)


@pytest.mark.parametrize("handler", [False, True])
def test_loading_weights_renews_the_bank(make_network, deployed, support, tmp_path, handler):
    other = make_network()
    for parameter in other.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    before = deployed.bank_prototypes.clone()
    deployed.train()
    if handler:  # as inference.json does
        torch.save(other.state_dict(), tmp_path / "model.pt")
        model = {"network": other, "preprocessing": PREPROCESSING, "labels": {}}
        write_model_record(tmp_path / "model.pt", model, "last")
        WeightsLoader(deployed, tmp_path / "model.pt", model)(Engine(lambda engine, batch: None))
    else:
        deployed.load_state_dict(other.state_dict())
    assert deployed.training and (deployed.bank_prototypes - before).abs().max() > 0.01
    bank = SupportBank(other.eval(), support.scans, [1, 3])
    for n, label in enumerate((1, 3)):
        for p in range(3):
            torch.testing.assert_close(deployed.bank_prototypes[n, p], bank.codes[label][p]["prototypes"])
            torch.testing.assert_close(deployed.bank_guide[n, p], bank.codes[label][p]["guide"])
            torch.testing.assert_close(deployed.bank_keys[n, p], bank.keys[label][p])


def test_the_support(folder, support, tmp_path, monkeypatch):
    assert support.labels == [1, 3] and support.names == {1: "left box", 3: "low box"}
    assert [scan["case"] for scan in support.scans] == ["one", "two"]
    assert Support(str(folder), PREPROCESSING).labels == [1, 2, 3]
    with pytest.raises(DataError, match=r"has no label \[7\]; it has .*'left box'"):
        Support(str(folder), PREPROCESSING, [1, 7])
    made = []
    monkeypatch.setattr("apscl_fewshot.inferer.generate_sample_data", made.append)
    for place in (tmp_path / "support", tmp_path / "sample" / "support"):
        with pytest.raises(DataError):
            Support(str(place), PREPROCESSING, sample_dir=str(tmp_path / "sample"))
    assert made == [str(tmp_path / "sample")]


def test_a_support_scan_without_a_class_is_named(make_network, tmp_path, write_scans):
    bare = Support(str(write_scans(tmp_path / "set", ["bare"], extents={1: (1, 7)})), PREPROCESSING, [1, 2])
    with pytest.raises(DataError, match=r"bare: expected label 2 in the support mask, found \[0, 1\]"):
        SupportedNetwork(make_network(), bare)


@pytest.mark.parametrize(("spacing", "fits"), [(2.1, True), (1.9, True), (2.3, False), (1.0, False)])
def test_support_scans_of_another_spacing_are_refused(folder, tmp_path, write_scans, spacing, fits):
    other = write_scans(tmp_path / "set", ["three"], spacing=spacing)
    index = json.loads((other / "dataset.json").read_text())
    for case in ("two", "one"):
        item = {kind: str(folder / f"{kind}s" / f"{case}.nii.gz") for kind in ("image", "label")}
        index["training"].insert(0, item)
    (other / "dataset.json").write_text(json.dumps(index))
    if fits:
        assert len(Support(str(other), PREPROCESSING).scans) == 3
        return
    expected = rf"three: expected about \[2.0, 2.0\] mm in the plane, as one has; found \[{spacing}"
    with pytest.raises(DataError, match=expected) as error:
        Support(str(other), PREPROCESSING)
    assert "two:" not in str(error.value)


def volume(images):
    """Slices as a volume ``(1, 1, H, W, D)``."""
    return images.permute(1, 2, 3, 0)[None]


def entropies(logits):
    """Entropy of each pixel, from probabilities in float64."""
    chance = logits.double().softmax(1)
    return -(chance * chance.log()).sum(1)


def test_uncertainty_is_the_entropy_of_the_mean_over_draws(deployed, make_scan):
    images = make_scan("query")["image"][[2, 4, 6]]
    inferer = UncertaintyInferer(num_samples=10, roi_size=(32, 32), spatial_dim=2, sw_batch_size=2, progress=False)
    with torch.no_grad():
        found = [inferer(volume(images), deployed) for _ in range(2)]
        draws = torch.stack([deployed(images, True).double().softmax(1) for _ in range(200)])
    assert found[0].shape == (1, 1, 32, 32, 3) and found[0].min() >= 0 and found[0].max() <= math.log(3) + 1e-6
    assert (found[0] - found[1]).abs().max() > 1e-3  # the latent is drawn
    expected = -(draws.mean(0) * draws.mean(0).log()).sum(1)
    for z in range(3):
        assert (found[0][0, 0, ..., z] - expected[z]).abs().mean() < 0.1


def test_uncertainty_of_a_latent_without_variance_has_no_spread(deployed, make_scan):
    images = make_scan("query")["image"][[2, 6]]
    block = deployed.prior.prior
    deployed.prior.prior.forward = lambda features: (type(block).forward(block, features)[0], torch.tensor(-40.0))
    inferer = UncertaintyInferer(num_samples=3, roi_size=(32, 32), spatial_dim=2, sw_batch_size=4, progress=False)
    with torch.no_grad():
        found, again = (inferer(volume(images), deployed)[0, 0] for _ in range(2))
        expected = entropies(deployed(images))
    torch.testing.assert_close(again, found, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.permute(2, 0, 1).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        (lambda x: x, False),
        (lambda x: 1.5 * x - 300, False),
        (lambda x: x / 1000, True),  # not the same unit
        (lambda x: 20 * x, True),
        (lambda x: x - 2000, True),  # air at -1000, the support has none
    ],
)
def test_a_query_of_another_range_of_values_is_warned_of(support, make_scan, change, warned):
    """The support has values from 1000 to 1400."""
    image = change(1000 + 100 * make_scan("query")["native"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert CheckQueryd("image", support)({"image": image})["image"] is image
    assert [str(w.message) for w in caught if "support of another modality" in str(w.message)] == [
        str(w.message) for w in caught] and len(caught) == warned  # fmt: skip


def test_a_query_with_a_fourth_axis_of_one_channel_is_as_good_as_one_without(support, make_scan, tmp_path):
    """As ANTs and FSL write them; all else that cannot be segmented is refused with all images, before the first."""
    voxels = 1000 + 100 * make_scan("query")["native"].numpy()
    nib.save(nib.Nifti1Image(voxels[..., None], np.eye(4)), tmp_path / "query.nii.gz")
    item = LoadImaged("image")({"image": str(tmp_path / "query.nii.gz")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CheckQueryd("image", support)(item) is item
