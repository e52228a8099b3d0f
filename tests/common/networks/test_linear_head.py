import pytest
import torch
from monai.networks.nets import BasicUNet, VNet
from torch import nn

from common.networks.linear_head import find_linear_head, forward_with_features

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """A body of one layer and a head; ``after`` follows the head."""

    def __init__(self, head, body=None, after=None, dims=2):
        super().__init__()
        self.body = body or CONVOLUTIONS[dims](1, 8, 3, padding=1)
        self.head, self.after = head, after or nn.Identity()

    def forward(self, image):
        return self.after(self.head(self.body(image)))


class Tokens(nn.Module):
    """Classes by ``nn.Linear``, the channels last."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, image):
        return self.head(self.body(image).movedim(1, -1)).movedim(-1, 1)


def logits_of(features, head):
    """The head by hand: a sum over channels and the bias, for each voxel."""
    weight = head.weight.flatten(1)
    return torch.einsum("ka,ba...->bk...", weight, features) + head.bias.reshape(-1, *[1] * (features.ndim - 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_features_are_what_the_logits_are_made_of(dims):
    torch.manual_seed(0)
    network, image = Net(CONVOLUTIONS[dims](8, 3, 1), dims=dims), torch.randn(2, 1, *(6, 5, 4)[:dims])
    assert find_linear_head(network, "head") is network.head
    logits, features = forward_with_features(network, image, "head")
    assert torch.equal(logits, network(image)) and features.shape == (2, 8, *image.shape[2:])
    assert torch.equal(features, network.body(image))
    torch.testing.assert_close(logits_of(features, network.head), logits)
    features.sum().backward()
    assert network.body.weight.grad is not None and network.head.weight.grad is None


def test_linear_layer_over_channels_last():
    torch.manual_seed(0)
    network, image = Tokens(), torch.randn(2, 1, 6, 5)
    logits, features = forward_with_features(network, image, "head")
    assert features.shape == (2, 8, 6, 5)
    torch.testing.assert_close(logits_of(features, network.head), logits)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(30, 2))
    logits, features = forward_with_features(classifier, image, "1")
    assert logits.shape == (2, 2) and torch.equal(features, image.flatten(1))


@pytest.mark.parametrize("dims", [2, 3])
def test_networks_of_monai(dims):
    network = BasicUNet(dims, 1, 3, features=(4, 4, 4, 4, 4, 6))
    logits, features = forward_with_features(network, torch.randn(2, 1, *[32] * dims), "final_conv")
    assert logits.shape[1] == 3 and features.shape == (2, 6, *[32] * dims)
    torch.testing.assert_close(logits_of(features, network.final_conv), logits)
    with pytest.raises(ValueError, match="Conv.d 3 -> 3, with no more inputs than outputs"):  # 1x1, but of the logits
        find_linear_head(VNet(dims, 1, 3), "out_tr.conv2", wide=True)


def test_inside_the_wrappers_for_several_gpus(tmp_path):
    network, image = Net(nn.Conv2d(8, 2, 1)), torch.randn(2, 1, 4, 4)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network)
        assert find_linear_head(wrapped, "head") is network.head
        logits, features = forward_with_features(wrapped, image, "head")
        assert torch.equal(logits, network(image)) and torch.equal(features, network.body(image))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("failing", ["body", "head", "after"])
def test_the_hook_goes_even_on_error(failing):
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no more memory")

    network = Net(nn.Conv2d(8, 2, 1))
    good = dict(network.named_children())
    if failing == "head":
        network.head.register_forward_hook(lambda *_: Failing()(None))
    else:
        setattr(network, failing, Failing())
    with pytest.raises(RuntimeError, match="no more memory"):
        forward_with_features(network, torch.randn(1, 1, 4, 4), "head")
    assert not network.head._forward_pre_hooks
    if failing != "head":
        setattr(network, failing, good[failing])
        forward_with_features(network, torch.randn(1, 1, 4, 4), "head")
        assert not network.head._forward_pre_hooks


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (nn.Conv2d(8, 2, 3, padding=1), r"Conv2d 8 -> 2 with kernel_size \(3, 3\)"),
        (nn.Conv2d(8, 2, (1, 3)), r"kernel_size \(1, 3\)"),
        (nn.Conv2d(8, 2, 1, stride=2), r"stride \(2, 2\)"),
        (nn.Conv2d(8, 2, 1, groups=2), "groups 2"),
        (nn.Conv2d(8, 2, 1, padding=1), r"padding \(1, 1\)"),
        (nn.ConvTranspose2d(8, 2, 1), "that is ConvTranspose2d"),
        (nn.Sequential(nn.Conv2d(8, 2, 1)), "that is Sequential"),
    ],
)
def test_other_layers_are_refused_by_name(head, found):
    with pytest.raises(ValueError, match=rf"'head' is not a linear head of Net: that is .*|{found}") as error:
        find_linear_head(Net(head), "head")
    assert error.match(found)


@pytest.mark.parametrize("classes", [8, 9])
def test_a_head_of_no_more_features_than_classes_is_refused_where_more_are_asked_for(classes):
    network = Net(nn.Conv2d(8, classes, 1))
    assert find_linear_head(network, "head") is network.head
    logits, _ = forward_with_features(network, torch.randn(1, 1, 4, 4), "head")
    assert logits.shape[1] == classes
    text = f"'head' of Net is Conv2d 8 -> {classes}, with no more inputs than outputs: give the network more channels"
    with pytest.raises(ValueError, match=text):
        find_linear_head(network, "head", wide=True)


def test_the_error_names_the_layers_that_would_do():
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 8, 1))
    network = Net(nn.Sequential(nn.Conv2d(8, 2, 1, padding="same")), body)
    kind = "Layers of that kind: 'body.1', Conv2d 16 -> 8; 'head.0', Conv2d 8 -> 2."
    for name, found in (("outconv", "it has no such layer"), ("head", "that is Sequential"), ("", "that is Net")):
        with pytest.raises(ValueError) as error:
            find_linear_head(network, name)
        assert f"{name!r} is not a linear head of Net: {found}. " in str(error.value)
        assert kind in str(error.value) and "kernel 1, stride 1, groups 1 and padding 0" in str(error.value)
    assert find_linear_head(network, "head.0") is network.head[0]
    with pytest.raises(ValueError, match="Layers of that kind: none; use a network that ends in a 1x1 convolution"):
        find_linear_head(Net(nn.Conv2d(8, 2, 3)), "head")


def test_a_layer_with_two_names_is_found_by_both():
    network = Net(nn.Conv2d(8, 2, 1))
    network.classifier = network.head
    assert find_linear_head(network, "classifier") is find_linear_head(network, "head")


def test_what_the_network_returns_must_be_the_heads():
    image = torch.randn(2, 1, 4, 4)

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    for after, found in ((nn.Upsample(scale_factor=2), r"\(2, 2, 8, 8\)"), (nn.Conv2d(2, 3, 1), r"\(2, 3, 4, 4\)"),
                         (Pair(), "tuple")):
        match = rf"the network returned {found}, but its head 'head' makes 2 logits of features \(2, 8, 4, 4\)"
        with pytest.raises(ValueError, match=match):
            forward_with_features(Net(nn.Conv2d(8, 2, 1), after=after), image, "head")


def test_a_head_must_run_once():
    network = Net(nn.Conv2d(8, 2, 1))
    network.spare = nn.Conv2d(8, 2, 1)

    class Twice(Net):
        def forward(self, image):
            return super().forward(image) + super().forward(image)

    twice = Twice(nn.Conv2d(8, 2, 1))
    for net, name, times in ((network, "spare", 0), (twice, "head", 2)):
        with pytest.raises(ValueError, match=f"the head '{name}' ran {times} times in one pass .* expected once"):
            forward_with_features(net, torch.randn(1, 1, 4, 4), name)
