"""One forward pass of a network, and what its layers were given: the features of losses that look inside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from common.engine.unwrap import unwrap


def forward_with_inputs(
    network: nn.Module, layers: Sequence[nn.Module], *arguments: torch.Tensor
) -> tuple[Any, list[Any]]:
    """What the network returns, and the first argument that each of these layers was given, with its gradient.

    Args:
        network: may be wrapped for several GPUs; it is the wrapper then that runs.
        layers: of the network.
        arguments: of the network.

    Raises:
        ValueError: a layer did not run exactly once (``nn.DataParallel`` runs copies: use ``DistributedDataParallel``).
    """
    inputs: list[list[Any]] = [[] for _ in layers]
    with ExitStack() as taps:  # they leave with the block
        for layer, seen in zip(layers, inputs, strict=True):
            taps.enter_context(layer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0])))
        output = network(*arguments)
    for layer, seen in zip(layers, inputs, strict=True):
        if len(seen) != 1:
            raise ValueError(f"{_describe(layer)} ran {len(seen)} times in one pass of the network, expected once.")
    return output, [seen[0] for seen in inputs]


def linear_classifier(network: nn.Module, wide: bool = False) -> nn.Module:
    """The layer ``network.classifier``, whose ``weight.flatten(1)`` is ``(K, A)``.

    A loss in closed form over the features of a voxel holds only for a layer that sees one voxel at a time.

    Args:
        network: may be wrapped for several GPUs.
        wide: ask for more features than classes, without which such a loss says little about features.

    Raises:
        ValueError: there is no such layer, it is neither ``nn.Linear`` nor a convolution with kernel 1, stride 1, one
            group and no padding, or it is not ``wide``.
    """
    network = unwrap(network)
    layer = getattr(network, "classifier", None)
    if not isinstance(layer, nn.Module) or not _is_linear(layer):
        found = _describe(layer) if isinstance(layer, nn.Module) else "no such layer"
        raise ValueError(
            f"{type(network).__name__}.classifier: expected nn.Linear or a convolution with kernel 1, stride 1, groups "
            f"1 and padding 0, found {found}; use a network that ends in one."
        )
    if wide and layer.weight.shape[1] <= layer.weight.shape[0]:
        raise ValueError(
            f"{type(network).__name__}.classifier is {_describe(layer)}, with no more inputs than outputs: give the "
            "network more channels there (its `width`), or number the labels 1, 2, 3 and so on where some are left out."
        )
    return layer


def forward_with_features(network: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward pass, and the features from which :func:`linear_classifier` made the logits.

    Shape:
        image ``(B, C, *spatial)``; logits ``(B, K, *spatial)`` and features ``(B, A, *spatial)``.

    Raises:
        ValueError: as :func:`linear_classifier` and :func:`forward_with_inputs`; or what the network returns is not
            what the classifier gives.
    """
    layer = linear_classifier(network)
    logits, (features,) = forward_with_inputs(network, [layer], image)
    features = features.movedim(-1, 1) if isinstance(layer, nn.Linear) else features
    outputs = layer.weight.shape[0]
    found = (*logits.shape,) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (features.shape[0], outputs, *features.shape[2:]):
        raise ValueError(
            f"the network returned {found}, but its classifier makes {outputs} logits of features "
            f"{(*features.shape,)}: what the network returns must be the classifier's output."
        )
    return logits, features


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    padding = 0 if isinstance(module.padding, str) else max(module.padding)  # "same" and "valid" add none to kernel 1
    return {*module.kernel_size, *module.stride, module.groups} == {1} and padding == 0


def _describe(module: nn.Module) -> str:
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return type(module).__name__
    if isinstance(module, nn.Linear):
        return f"Linear {module.in_features} -> {module.out_features}"
    options = {name: getattr(module, name) for name in ("kernel_size", "stride", "groups", "padding")}
    text = "" if _is_linear(module) else " with " + ", ".join(f"{name} {value}" for name, value in options.items())
    return f"{type(module).__name__} {module.in_channels} -> {module.out_channels}{text}"
