"""The Gaussian contrast: full against diagonal covariance and the naive form, its memory, its share of a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from common.losses import ClassStatistics, GaussianContrastiveLoss, GaussianStats

from .timing import gradient, share_of_step

PIXELS, WIDTH, CLASSES, TEMPERATURE = 65536, 32, 3, 0.5


def contrast(repeats: int) -> list[dict]:
    """Forward and backward of N = 65536 pixels, A = 32, C = 3; then steps of training with and without the term."""
    features = F.normalize(torch.randn(PIXELS, WIDTH), dim=1)
    labels = torch.randint(0, CLASSES, (PIXELS,))
    stats = {}
    for kind in ("full", "diag"):
        statistics = ClassStatistics(CLASSES, WIDTH, cov=kind)
        statistics.update(features + 0.1 * F.one_hot(labels, WIDTH), labels)
        stats[kind] = statistics.pooled()
    loss = GaussianContrastiveLoss(TEMPERATURE)
    forms: dict[str, Callable] = {
        "full": lambda q: loss(q, labels, stats["full"]),
        "diagonal": lambda q: loss(q, labels, stats["diag"]),
        "full, normalised": lambda q: loss(F.normalize(q, dim=1), labels, stats["full"]),
        "diagonal, normalised": lambda q: loss(F.normalize(q, dim=1), labels, stats["diag"]),
        "naive N x C x A x A": lambda q: _naive(q, labels, stats["full"]),
    }
    seconds, slopes = {}, {}
    for name, form in forms.items():
        seconds[name], slopes[name] = gradient(form, features, repeats if name != "naive N x C x A x A" else 1)
    apart = float((slopes["full"] - slopes["naive N x C x A x A"]).abs().max() / slopes["full"].abs().max())
    extra = _peak(lambda q: loss(q, labels, stats["full"]), features)
    rows = [{"part": "forward + backward, full covariance", "CPU s": seconds["full"],
             "over diagonal": seconds["full"] / seconds["diagonal"],
             "with the features' normalisation": seconds["full, normalised"] / seconds["diagonal, normalised"],
             "naive over it": seconds["naive N x C x A x A"] / seconds["full"],
             "largest difference of the gradient": apart,
             "extra peak MiB": extra / 2**20,
             "of 4 N (A + C) floats": extra / (4 * PIXELS * (WIDTH + CLASSES) * 4)}]  # fmt: skip
    return rows + [_share(repeats)]


def _naive(q: torch.Tensor, labels: torch.Tensor, stats: GaussianStats) -> torch.Tensor:
    """The formula as it is written, the covariance gathered for every pixel."""
    cov = stats.cov[None].expand(len(q), -1, -1, -1)
    s = (q[:, None, :, None] * cov * q[:, None, None, :]).sum((2, 3)) / TEMPERATURE**2
    linear = q @ stats.mean.T / TEMPERATURE
    return (torch.logsumexp(linear + s / 2, 1) - linear.gather(1, labels[:, None])[:, 0]).mean()


def _peak(form: Callable, features: torch.Tensor) -> int:
    """Most bytes that forward and backward hold at a time, counted from the allocator's events."""
    q = features.clone().requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        form(q).backward()
    held = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _share(repeats: int) -> dict:
    """A training step with and without the term: 8 images of 96 x 96, two views, every second pixel of each axis."""
    from monai.losses import DiceCELoss

    from common.losses import SymmetricKLLoss
    from sgcg_dg.network import UNet
    from sgcg_dg.objective import FeatureContrast, GeneralisationObjective, RegionLoss
    from sgcg_dg.restoration import RestorationDecoder

    image = torch.rand(8, 3, 96, 96)
    batch = {"image": image, "image_ram": torch.rand_like(image), "label": torch.randint(0, 3, (8, 1, 96, 96)),
             "domain": torch.arange(4).repeat_interleave(2)}  # fmt: skip
    term = FeatureContrast(ClassStatistics(3, 32, groups=4), GaussianContrastiveLoss(TEMPERATURE), 3)
    segmentation = RegionLoss(DiceCELoss(sigmoid=True, squared_pred=True, batch=True), {"cup": [2], "disc": [1, 2]})
    restoration = RestorationDecoder(domains=4)
    objectives = {
        name: GeneralisationObjective(segmentation, SymmetricKLLoss(), restoration, own)
        for name, own in (("without", None), ("with", term))
    }
    return share_of_step("training step of 8 images of 96 x 96", UNet(), objectives, batch, repeats)
