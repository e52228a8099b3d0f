"""What the features look like: scatter between the domains, and the picture of the paper's figure 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import nn

from common.data.temporary import writing
from common.losses import ClassStatistics
from common.report.plain_text import in_picture, plain_text

from .objective import all_levels

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000", "#999999")
SHAPES = ("o", "s", "D", "^", "v", "P", "X", "*")


@torch.no_grad()
def pixel_features(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, per_class: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features ``(N, A)`` of the penultimate map and labels ``(N,)``, at most ``per_class`` pixels of a class."""
    network.eval()
    maps = all_levels(network, images)["penultimate"].float()
    features = F.normalize(maps, dim=1).movedim(1, -1).flatten(0, -2).cpu()
    labels = labels.flatten().long().cpu()
    chosen = []
    for label in labels.unique().tolist():
        places = np.flatnonzero(labels.numpy() == label)
        chosen.append(rng.choice(places, min(per_class, len(places)), replace=False))
    index = torch.from_numpy(np.concatenate(chosen))
    return features[index], labels[index]


def between_domain_scatter(features: Sequence[tuple[torch.Tensor, torch.Tensor]], num_classes: int) -> float:
    """Scatter of the class means between domains over the variance within, averaged over classes.

    Args:
        features: of each domain, pixels ``(N, A)`` and their labels ``(N,)``.
    """
    statistics = ClassStatistics(num_classes, features[0][0].shape[1], cov="full", groups=len(features))
    for group, (pixels, labels) in enumerate(features):
        statistics.update(pixels, labels, group)
    return float(statistics.between_group_scatter())


@plain_text()
def save_tsne(
    path: str | Path,
    features: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    labels: Mapping[int, str],
    per_class: int = 100,
    seed: int = 0,
) -> None:
    """t-SNE of pixel features: left coloured by class, right by domain.

    Args:
        features: of each domain, pixels ``(N, A)`` and their labels ``(N,)``.
        labels: class id to name, without the background.
    """
    rng = np.random.default_rng(seed)
    points, classes, domains = [], [], []
    for number, (pixels, own) in enumerate(features.values()):
        for label in own.unique().tolist():
            places = np.flatnonzero(own.numpy() == label)
            places = rng.choice(places, min(per_class, len(places)), replace=False)
            points.append(pixels[places].numpy())
            classes += [label] * len(places)
            domains += [number] * len(places)
    points, classes, domains = np.concatenate(points), np.array(classes), np.array(domains)
    flat = TSNE(perplexity=min(30, (len(points) - 1) / 3), init="pca", random_state=seed).fit_transform(points)
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = {0: "background", **labels}
    for axis, values, keys in ((left, classes, names), (right, domains, dict(enumerate(features)))):
        drawn = []
        for number, (value, name) in enumerate(keys.items()):
            own = flat[values == value]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": SHAPES[number % len(SHAPES)]}
            style["label"] = in_picture(name)
            drawn.append(axis.scatter(own[:, 0], own[:, 1], s=9, linewidths=0, alpha=0.7, **style))
        axis.set_xticks([]), axis.set_yticks([])
        axis.legend(drawn, map(in_picture, keys.values()), loc="best", fontsize=8, markerscale=2)
    left.set_title("pixel features by class")
    right.set_title("the same by domain")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with writing(Path(path)):
        figure.savefig(path, dpi=110)
