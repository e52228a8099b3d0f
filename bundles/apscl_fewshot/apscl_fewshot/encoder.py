"""The image encoders (a U-Net on ImageNet features; the paper's dilated ResNet) and the light encoder for labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from common.description import described
from common.networks import EfficientNetLite0
from common.networks.image_net_weights import fit_weights, read_first_weights
from common.networks.lite_unet import LEVELS, LiteDecoder

LAYERS = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
}


@described(leave_out=["weights"])
class ResNetEncoder(nn.Module):
    """ResNet with dilation instead of stride in its last stages, and a bias-free 1x1 convolution to ``feat_dim``.

    Source: the encoder of Huang et al., ACM MM 2024, section 4.2, i.e. the backbone of torchvision's DeepLabV3 as used
    by SSL-ALPNet. Built from MONAI's ResNet, whose state dict (``body.*``) has torchvision's names and shapes, so that
    torchvision's ImageNet or COCO weights load. Departures: ``width`` and ``norm`` for small runs from a random start.

    Args:
        name: ``resnet18`` or ``resnet101``.
        in_channels: 3 for torchvision's weights (a grey image is repeated), 1 for a grey network.
        feat_dim: channels A of the result; signed (no norm, no activation).
        width: channels of the first stage; 64 is torchvision's.
        norm: ``batch`` or ``group`` (8 groups; the same in training and evaluation, for steps of one or two images).
        weights: path of a torchvision or DeepLabV3 state dict, or null.

    Shape:
        ``(B, C, H, W)`` to ``(B, A, H / 8, W / 8)``.

    Raises:
        ValueError: unknown name or norm, or weights of another depth or width (all misfits named).
    """

    def __init__(
        self,
        name: str = "resnet101",
        in_channels: int = 3,
        feat_dim: int = 256,
        width: int = 64,
        norm: str = "batch",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if name not in LAYERS or norm not in ("batch", "group"):
            raise ValueError(f"name must be one of {sorted(LAYERS)}, norm batch or group; got {name!r}, {norm!r}.")
        block, layers = LAYERS[name]
        self.body = ResNet(
            block, layers, [width, width * 2, width * 4, width * 8], spatial_dims=2, n_input_channels=in_channels,
            conv1_t_size=7, conv1_t_stride=2, shortcut_type="B", feed_forward=False, bias_downsample=False,
        )  # fmt: skip
        _dilate(self.body)
        if norm == "group":
            _use_group_norm(self.body)
        expansion = 1 if block == "basic" else 4
        self.projection = nn.Conv2d(width * 8 * expansion, feat_dim, 1, bias=False)
        self.in_channels = in_channels
        if weights is not None:
            load_torchvision_weights(self.body, weights, name)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[1] == 1 and self.in_channels > 1:
            image = image.expand(-1, self.in_channels, -1, -1)
        x = self.body.maxpool(self.body.act(self.body.bn1(self.body.conv1(image))))
        x = self.body.layer4(self.body.layer3(self.body.layer2(self.body.layer1(x))))
        return self.projection(x)


@described(leave_out=["weights"])
class LiteUNetEncoder(nn.Module):
    """U-Net with the ImageNet features of EfficientNet-Lite0 as its way down, and a bias-free 1x1 convolution.

    Source: ours, in place of the paper's ResNet-101 (section 4.2). The way up is that of
    :class:`common.networks.LiteUNet` and ends at half of the image's size, so that a contour is drawn from features of
    two pixels where the paper's are of eight.

    Args:
        in_channels, weights, value_range: as :class:`common.networks.EfficientNetLite0`.
        feat_dim: channels A of the result; signed (no norm, no activation).
        width: of the way up, an even number; its last map has 3/2 of it.

    Shape:
        ``(B, C, H, W)`` to ``(B, A, H / 2, W / 2)``.

    Raises:
        ValueError: as :class:`common.networks.EfficientNetLite0`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        feat_dim: int = 64,
        width: int = 16,
        weights: str | None = None,
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.body = EfficientNetLite0(in_channels, LEVELS, 16, weights, value_range)
        self.decoder = LiteDecoder(width)
        self.projection = nn.Conv2d(3 * width // 2, feat_dim, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.projection(self.decoder(self.body(image)))


@described()
class LightEncoder(nn.Module):
    """A stack of strided 3x3 convolutions from a mask to the size of the image features; under 1 M parameters.

    The paper's label encoder has the image encoder's structure; this one halves the cost of a training step and, like
    it, is absent at inference.

    Shape:
        ``(B, 1, H, W)`` to ``(B, A, H / 8, W / 8)``.
    """

    def __init__(self, feat_dim: int = 256, channels: tuple[int, int] = (16, 32)) -> None:
        super().__init__()
        widths = [1, *channels, feat_dim]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            groups = 8 if after % 8 == 0 else 1
            steps += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(groups, after), nn.ReLU(inplace=True)]
        self.steps = nn.Sequential(*steps[:-1])

    def forward(self, mask: torch.Tensor) -> torch.Tensor:
        return self.steps(mask)


def load_torchvision_weights(body: nn.Module, path: str | Path, name: str) -> None:
    """Load a torchvision ResNet or DeepLabV3 state dict; heads are dropped, anything else must fit exactly."""
    state = read_first_weights(path, name)
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    state = {
        key: value for key, value in state.items() if not key.startswith(("fc.", "classifier.", "aux_classifier."))
    }
    fit_weights(body, state, "conv1.weight", path, name)


def _dilate(body: ResNet) -> None:
    """Trade the stride of layer3 and layer4 for dilation, as torchvision does for a map of an eighth of the size."""
    for stage, before, after in ((body.layer3, 1, 2), (body.layer4, 2, 4)):
        for index, block in enumerate(stage):
            step = before if index == 0 else after
            for conv in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
                if index == 0:
                    conv.stride = (1, 1)
                if conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (step, step)
                    step = after  # the second 3 x 3 of a basic block lies behind the stride that was traded


def _use_group_norm(module: nn.Module) -> None:
    """Swap every batch norm for a group norm: MONAI's ResNet hands its ``norm`` argument to the stem alone."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        else:
            _use_group_norm(child)
