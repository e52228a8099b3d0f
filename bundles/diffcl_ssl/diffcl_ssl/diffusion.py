"""DS, the diffusion network of Diff-CL, and the process that noises segmentations for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from monai.networks.schedulers import DDPMScheduler
from torch import nn

from common.description import described
from common.networks.blocks import check_image
from common.networks.vnet import VNet

__all__ = ["Diffusion", "DiffusionNetwork"]

WAVES, EMBEDDING = 128, 512  # sinusoids of a time, and width of what is made of them
STEPS, BETAS = 1000, (1e-4, 2e-2)  # T, and the first and the last beta


@described()
class DiffusionNetwork(VNet):
    r"""V-Net that finds a segmentation in the image, a noised segmentation, and the time that tells how noised it is.

    It works on the image and the noised segmentation side by side as channels, and every convolution of kernel 3 adds
    a shift of its channels that depends on the time:

    .. math:: x \leftarrow \mathrm{LeakyReLU}(\mathrm{Norm}(\mathrm{Conv}_3(x)) + W\,\mathrm{SiLU}(e(t)) + b), \quad
              e(t) = \mathrm{MLP}(\cos \omega t, \sin \omega t)

    with 64 frequencies :math:`\omega` from 1 down to nearly 1/10000, and an MLP of 512 and 512 channels with a SiLU
    between. The shift stands behind the norm: before it, an instance norm would take it out again. The weights on the
    noised segmentation are 0 at first: at high noise it has more channels than the image and says nothing.

    Source: reconstructed from the abstract and captions of Diff-CL (arXiv 2503.09408), which name the input and no
    layer; the embedding is that of Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020.

    Args:
        in_channels: image channels C.
        out_channels: classes K.
        spatial_dims, width, norm, dropout: as for :class:`~common.networks.VNet`.
        zero_start: False draws the first weights on the noised segmentation as all others.

    Shape:
        image ``(B, C, *spatial)``, noised segmentation ``(B, K, *spatial)`` and integer times ``(B,)`` to logits of the
        segmentation without noise, ``(B, K, *spatial)``.

    Raises:
        ValueError: an unknown option; an image, noised segmentation or times of another shape, or times that are no
            integers.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 16,
        norm: str = "batch",
        dropout: float = 0.0,
        zero_start: bool = True,
    ) -> None:
        super().__init__(spatial_dims, in_channels + out_channels, out_channels, width, norm, dropout)
        self.image_channels, self.classes = in_channels, out_channels
        if zero_start:
            with torch.no_grad():
                self._blocks()[0][0].weight[:, in_channels:] = 0
        self.time = nn.Sequential(nn.Linear(WAVES, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU())
        self.shifts = nn.ModuleList(nn.Linear(EMBEDDING, conv.out_channels) for conv, _, _ in self._blocks())

    def forward(self, image: torch.Tensor, noised: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        self._check(image, noised, times)
        embedding = self.time(get_timestep_embedding(times, WAVES).to(self.classifier.weight.dtype))
        with ExitStack() as hooks:  # they leave with the block
            for (_, norm, _), linear in zip(self._blocks(), self.shifts, strict=True):
                hooks.enter_context(norm.register_forward_hook(_add(linear(embedding))))
            return super().forward(torch.cat([image, noised], 1))

    def _blocks(self) -> list[nn.Sequential]:
        """Convolution of kernel 3, norm and leaky ReLU, each time that the network has them."""
        return [block for stage in (*self.encoder, *self.decoder) for block in stage]

    def _check(self, image: torch.Tensor, noised: torch.Tensor, times: torch.Tensor) -> None:
        check_image(image, self.spatial_dims, self.image_channels)
        expected = (image.shape[0], self.classes, *image.shape[2:])
        if noised.shape != expected:
            raise ValueError(f"expected a noised segmentation of shape {expected}, got {(*noised.shape,)}.")
        if times.shape != expected[:1] or times.is_floating_point():
            raise ValueError(f"expected {expected[0]} integer times, got {times.dtype} of shape {(*times.shape,)}.")


@described()
class Diffusion(nn.Module):
    r"""Noises segmentations.

    A segmentation is :math:`Y_0 \in \{-1, 1\}^K`, 1 at the class of the voxel. With :math:`\epsilon \sim N(0, I)`,

    .. math:: Y_t = \sqrt{\bar\alpha_t}\,Y_0 + \sqrt{1 - \bar\alpha_t}\,\epsilon, \quad
              \bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \quad t = 0 \dots T - 1

    with T = 1000 and :math:`\beta` linear from 0.0001 to 0.02.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, by MONAI's scheduler.

    All random numbers are torch's global ones. It has no parameters and no state.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scheduler = DDPMScheduler(STEPS, "linear_beta", beta_start=BETAS[0], beta_end=BETAS[1])

    def encode(self, labels: torch.Tensor) -> torch.Tensor:
        """Y_0.

        Args:
            labels: integers ``(B, *spatial)``, each one a class.

        Returns:
            ``(B, K, *spatial)`` in float32, 1 for the class and -1 for the others.

        Raises:
            ValueError: a label that is no class; unknown ones have no segmentation to noise.
        """
        low, high = labels.aminmax()
        if labels.is_floating_point() or low < 0 or high >= self.num_classes:
            raise ValueError(
                f"expected integer labels from 0 to {self.num_classes - 1}, got {labels.dtype} from {low} to {high}."
            )
        shape = (labels.shape[0], self.num_classes, *labels.shape[1:])
        return torch.full(shape, -1.0, device=labels.device).scatter_(1, labels.long()[:, None], 1.0)

    def draw_times(
        self,
        count: int,
        low: float = 0.0,
        high: float = 1.0,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Times, uniform over the integers of ``[low T, high T)``: int64 ``(count,)``.

        Args:
            device: of the times; they are drawn on the CPU, the same for every device.
            generator: of the CPU; null takes torch's global one.

        Raises:
            ValueError: the range lies not within 0 to 1, or no integer in it.
        """
        first, end = round(low * STEPS), round(high * STEPS)
        if not 0 <= first < end <= STEPS:
            raise ValueError(f"expected times from low to above it within 0 to 1, got {low} to {high}.")
        return torch.randint(first, end, (count,), generator=generator).to(device)

    def noised(self, labels: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Y_t of labels ``(B, *spatial)``, each item at its own of the times ``(B,)``: ``(B, K, *spatial)``."""
        clean = self.encode(labels)
        return self.scheduler.add_noise(clean, torch.randn_like(clean), times)


def _add(shift: torch.Tensor) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
    """A forward hook that adds a shift ``(B, channels)`` to what a layer returns."""
    return lambda module, inputs, output: output + shift.view(*shift.shape, *[1] * (output.ndim - 2))
