import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from common.networks import forward_with_features, forward_with_inputs, linear_classifier

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """A body of one layer and a classifier; ``after`` follows it."""

    def __init__(self, classifier, body=None, after=None, dims=2):
        super().__init__()
        self.body = body or CONVOLUTIONS[dims](1, 8, 3, padding=1)
        self.classifier, self.after = classifier, after or nn.Identity()

    def forward(self, image):
        return self.after(self.classifier(self.body(image)))


class Tokens(nn.Module):
    """Classes by ``nn.Linear``, the channels last."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, image):
        return self.classifier(self.body(image).movedim(1, -1)).movedim(-1, 1)


def logits_of(features, layer):
    """The classifier by hand: a sum over channels and the bias, for each voxel."""
    weight = layer.weight.flatten(1)
    return torch.einsum("ka,ba...->bk...", weight, features) + layer.bias.reshape(-1, *[1] * (features.ndim - 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_features_are_what_the_logits_are_made_of(dims):
    torch.manual_seed(0)
    network, image = Net(CONVOLUTIONS[dims](8, 3, 1), dims=dims), torch.randn(2, 1, *(6, 5, 4)[:dims])
    assert linear_classifier(network) is network.classifier
    logits, features = forward_with_features(network, image)
    assert torch.equal(logits, network(image)) and features.shape == (2, 8, *image.shape[2:])
    assert torch.equal(features, network.body(image))
    torch.testing.assert_close(logits_of(features, network.classifier), logits)
    features.sum().backward()
    assert network.body.weight.grad is not None and network.classifier.weight.grad is None


def test_linear_layer_over_channels_last():
    torch.manual_seed(0)
    network, image = Tokens(), torch.randn(2, 1, 6, 5)
    logits, features = forward_with_features(network, image)
    assert features.shape == (2, 8, 6, 5)
    torch.testing.assert_close(logits_of(features, network.classifier), logits)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_of_monai_whose_last_layer_has_another_name(dims):
    class Named(BasicUNet):
        classifier = property(lambda self: self.final_conv)

    network = Named(dims, 1, 3, features=(4, 4, 4, 4, 4, 6))
    logits, features = forward_with_features(network, torch.randn(2, 1, *[32] * dims))
    assert logits.shape[1] == 3 and features.shape == (2, 6, *[32] * dims)
    torch.testing.assert_close(logits_of(features, network.final_conv), logits)


def test_inside_the_wrappers_for_several_gpus(tmp_path):
    network, image = Net(nn.Conv2d(8, 2, 1)), torch.randn(2, 1, 4, 4)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network)
        assert linear_classifier(wrapped) is network.classifier
        logits, features = forward_with_features(wrapped, image)
        assert torch.equal(logits, network(image)) and torch.equal(features, network.body(image))
    finally:
        torch.distributed.destroy_process_group()


# --- several layers ---


class Branches(nn.Module):
    """Two inputs, two layers of one shape each, and outputs that are no tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(1, 1)

    def forward(self, one, other):
        wide = self.first(one + other)
        return {"wide": wide, "narrow": self.second(wide.relu())}


def test_what_each_layer_was_given_in_the_order_asked_for():
    network, one, other = Branches(), torch.randn(4, 2), torch.randn(4, 2)
    output, (second, first) = forward_with_inputs(network, [network.second, network.first], one, other)
    assert torch.equal(first, one + other) and torch.equal(second, output["wide"].relu())
    assert torch.equal(output["narrow"], network(one, other)["narrow"])
    second.sum().backward()
    assert network.first.weight.grad is not None and network.second.weight.grad is None
    assert not network.first._forward_pre_hooks and not network.second._forward_pre_hooks
    assert forward_with_inputs(network, [], one, other)[1] == []


def test_a_layer_asked_for_twice_is_given_twice():
    network, one = Branches(), torch.randn(4, 2)
    _, (first, again) = forward_with_inputs(network, [network.first] * 2, one, one)
    assert first is again and not network.first._forward_pre_hooks


@pytest.mark.parametrize("failing", ["first", "second"])
def test_the_taps_leave_even_on_an_error(failing):
    network, one = Branches(), torch.randn(4, 2)

    def fail(*_):
        raise RuntimeError("no more memory")

    hook = getattr(network, failing).register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no more memory"):
        forward_with_inputs(network, [network.first, network.second], one, one)
    hook.remove()
    for layer in (network.first, network.second):
        assert not layer._forward_pre_hooks and not layer._forward_hooks


def test_a_layer_must_run_once():
    class Twice(Net):
        def forward(self, image):
            return super().forward(image) + super().forward(image)

    network, one = Branches(), torch.randn(4, 2)
    with pytest.raises(ValueError, match="Linear 1 -> 1 ran 0 times in one pass of the network, expected once"):
        forward_with_inputs(network, [network.first, network.unused], one, one)
    with pytest.raises(ValueError, match="Conv2d 8 -> 2 ran 2 times in one pass of the network, expected once"):
        forward_with_features(Twice(nn.Conv2d(8, 2, 1)), torch.randn(1, 1, 4, 4))


# --- what is refused ---


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.Conv2d(8, 2, 3, padding=1), r"Conv2d 8 -> 2 with kernel_size \(3, 3\)"),
        (nn.Conv2d(8, 2, (1, 3)), r"kernel_size \(1, 3\)"),
        (nn.Conv2d(8, 2, 1, stride=2), r"stride \(2, 2\)"),
        (nn.Conv2d(8, 2, 1, groups=2), "groups 2"),
        (nn.Conv2d(8, 2, 1, padding=1), r"padding \(1, 1\)"),
        (nn.ConvTranspose2d(8, 2, 1), "ConvTranspose2d;"),
        (nn.Sequential(nn.Conv2d(8, 2, 1)), "Sequential;"),
        (None, "no such layer;"),
        ("classifier", "no such layer;"),
    ],
)
def test_other_layers_are_refused_by_name(layer, found):
    with pytest.raises(ValueError, match=rf"^Net.classifier: expected nn.Linear or .*, found (.*with )?.*{found}"):
        linear_classifier(Net(layer))
    with pytest.raises(ValueError, match="ReLU.classifier: expected nn.Linear or .*, found no such layer; use a net"):
        linear_classifier(nn.ReLU())


def test_padding_by_name_adds_none_to_a_kernel_of_one():
    network = Net(nn.Conv2d(8, 2, 1, padding="same"))
    assert linear_classifier(network) is network.classifier


@pytest.mark.parametrize("classes", [8, 9])
def test_no_more_features_than_classes_are_refused_where_more_are_asked_for(classes):
    network = Net(nn.Conv2d(8, classes, 1))
    assert linear_classifier(network) is network.classifier
    logits, _ = forward_with_features(network, torch.randn(1, 1, 4, 4))
    assert logits.shape[1] == classes
    text = f"Net.classifier is Conv2d 8 -> {classes}, with no more inputs than outputs: give the network more channels"
    with pytest.raises(ValueError, match=text):
        linear_classifier(network, wide=True)
    enough = Net(nn.Conv2d(8, 7, 1))
    assert linear_classifier(enough, wide=True) is enough.classifier


def test_what_the_network_returns_must_be_the_classifiers():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    for after, found in ((nn.Upsample(scale_factor=2), r"\(2, 2, 8, 8\)"), (nn.Conv2d(2, 3, 1), r"\(2, 3, 4, 4\)"),
                         (Pair(), "tuple")):
        match = rf"the network returned {found}, but its classifier makes 2 logits of features \(2, 8, 4, 4\)"
        with pytest.raises(ValueError, match=match):
            forward_with_features(Net(nn.Conv2d(8, 2, 1), after=after), torch.randn(2, 1, 4, 4))
