"""Transferable semantic augmentation: its loss against the formula voxel by voxel, its share of a training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from common.losses import ExpectedCrossEntropyLoss

from .timing import gradient, share_of_step

VOXELS, WIDTH, CLASSES, STRENGTH = 65536, 16, 4, 0.25
STEPS = ((2, (64, 64), 12), (2, (96, 96), 12), (3, (32, 32, 32), 4), (3, (48, 48, 32), 4))  # axes, size, batch


def augmentation(repeats: int) -> list[dict]:
    """Forward and backward of N = 65536 voxels, A = 16, K = 4; then steps of training with and without the term."""
    logits, labels = torch.randn(VOXELS, CLASSES), torch.randint(0, CLASSES, (VOXELS,))
    weight, shift, root = torch.randn(CLASSES, WIDTH), torch.randn(CLASSES, WIDTH), torch.randn(CLASSES, WIDTH, WIDTH)
    cov = root @ root.mT / WIDTH
    loss = ExpectedCrossEntropyLoss(max_margin=float("inf"))
    forms: dict[str, Callable] = {
        "look-up": lambda o: loss(o, labels, weight, STRENGTH, shift, cov),
        "voxel by voxel": lambda o: _naive(o, labels, weight, shift, cov),
        "cross-entropy": lambda o: F.cross_entropy(o, labels),
    }
    seconds, slopes = {}, {}
    for name, form in forms.items():
        seconds[name], slopes[name] = gradient(form, logits, repeats)
    apart = float((slopes["look-up"] - slopes["voxel by voxel"]).abs().max() / slopes["look-up"].abs().max())
    row = {
        "part": "forward + backward, full covariance",
        "CPU s": seconds["look-up"],
        "voxel by voxel over it": seconds["voxel by voxel"] / seconds["look-up"],
        "over cross-entropy": seconds["look-up"] / seconds["cross-entropy"],
        "largest difference of the gradient": apart,
    }
    return [row, *(_share(repeats, *setting) for setting in STEPS)]


def _naive(
    logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, cov: torch.Tensor
) -> torch.Tensor:
    """The formula as it is written, with the statistics gathered for every voxel."""
    apart = weight[None] - weight[labels][:, None]
    mean = (apart * shift[labels][:, None]).sum(-1)
    spread = torch.einsum("nka,nab,nkb->nk", apart, cov[labels], apart)
    return F.cross_entropy(logits + STRENGTH * mean + STRENGTH / 2 * spread, labels)


def _share(repeats: int, dims: int, size: tuple[int, ...], batch_size: int) -> dict:
    """A step of copy-paste with and without the term."""
    from common.networks import VNet
    from common.semi_supervised import CopyPaste, MeanTeacher
    from transmedseg_ssl.augmentation import TransferableAugmentation
    from transmedseg_ssl.network import UNet
    from transmedseg_ssl.objective import TransMedSegObjective

    if dims == 2:
        network, width = UNet(2, 1, CLASSES, 16), 16
    else:
        network, width = VNet(3, 1, CLASSES, 8, "instance"), 8
    image = torch.randn(batch_size, 1, *size)
    # blocks of every class, as in a scan, where noise would fill the largest components' search
    label = F.interpolate(torch.randint(0, CLASSES, (batch_size, 1, *[4] * dims)).float(), size=size).long()
    batch = {"image": image + label, "label": label, "unlabeled": torch.randn_like(image) + label}
    teacher = MeanTeacher(network)
    term = TransferableAugmentation(CLASSES, width)
    objectives = {
        name: TransMedSegObjective(CopyPaste(pretrain=0.0), teacher, own)
        for name, own in (("without", None), ("with", term))
    }
    part = f"training step of {batch_size} images of {' x '.join(map(str, size))}"
    return share_of_step(part, network, objectives, batch, repeats)
