"""The last layer of a network as a linear classifier of each voxel: finding it, and the features that it is given."""

from __future__ import annotations

import torch
from torch import nn

from common.engine.unwrap import unwrap


def find_linear_head(network: nn.Module, name: str, wide: bool = False) -> nn.Module:
    """The layer called ``name``, whose ``weight.flatten(1)`` is ``(K, A)``.

    A loss in closed form over the features of a voxel holds only for a layer that sees one voxel at a time.

    Args:
        network: may be wrapped for several GPUs; the name is that inside the wrapper.
        name: as in ``network.named_modules()``, for example ``final_conv`` of MONAI's ``BasicUNet``.
        wide: ask for more features than classes, without which such a loss says little about features.

    Raises:
        ValueError: there is no such layer, it is neither ``nn.Linear`` nor a convolution with kernel 1, stride 1, one
            group and no padding, or it is not ``wide``. Says what was found, and which layers would do.
    """
    modules = dict(unwrap(network).named_modules(remove_duplicate=False))
    if name not in modules:
        found = "it has no such layer"
    elif not _is_linear(modules[name]):
        found = f"that is {_describe(modules[name])}"
    elif wide and not _is_wide(modules[name]):
        raise ValueError(
            f"the head {name!r} of {type(unwrap(network)).__name__} is {_describe(modules[name])}, with no more inputs "
            "than outputs: give the network more channels there (its `width`), or number the labels 1, 2, 3 and so on "
            "where some are left out."
        )
    else:
        return modules[name]
    candidates = [f"{place!r}, {_describe(m)}" for place, m in modules.items() if _is_linear(m)]
    raise ValueError(
        f"{name!r} is not a linear head of {type(unwrap(network)).__name__}: {found}. Expected nn.Linear or a "
        "convolution with kernel 1, stride 1, groups 1 and padding 0. "
        f"Layers of that kind: {'; '.join(candidates) or 'none; use a network that ends in a 1x1 convolution'}."
    )


def forward_with_features(network: nn.Module, image: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward pass, and the features from which the head made the logits.

    That the network returns what the head gives, with no layer between, is for the caller to see to.

    Args:
        network, name: as for :func:`find_linear_head`; the pass goes through the wrapper, if there is one.
        image: ``(B, C, *spatial)``.

    Shape:
        logits ``(B, K, *spatial)`` and features ``(B, A, *spatial)``, with the gradient of the pass.

    Raises:
        ValueError: as :func:`find_linear_head`; the head did not run exactly once (``nn.DataParallel`` runs copies of
            it: use ``DistributedDataParallel``); or the logits do not have one voxel for each of the features.
    """
    head = find_linear_head(network, name)
    inputs: list[torch.Tensor] = []
    with head.register_forward_pre_hook(lambda module, args: inputs.append(args[0])):  # leaves with the block
        logits = network(image)
    if len(inputs) != 1:
        raise ValueError(f"the head {name!r} ran {len(inputs)} times in one pass of the network, expected once.")
    features = inputs[0].movedim(-1, 1) if isinstance(head, nn.Linear) else inputs[0]
    outputs = head.weight.shape[0]
    found = (*logits.shape,) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (features.shape[0], outputs, *features.shape[2:]):
        raise ValueError(
            f"the network returned {found}, but its head {name!r} makes {outputs} logits of features "
            f"{(*features.shape,)}: what the network returns must be the head's output."
        )
    return logits, features


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    padding = 0 if isinstance(module.padding, str) else max(module.padding)  # "same" and "valid" add none to kernel 1
    return {*module.kernel_size, *module.stride, module.groups} == {1} and padding == 0


def _is_wide(module: nn.Module) -> bool:
    return module.weight.shape[1] > module.weight.shape[0]


def _describe(module: nn.Module) -> str:
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return type(module).__name__
    if isinstance(module, nn.Linear):
        return f"Linear {module.in_features} -> {module.out_features}"
    options = {name: getattr(module, name) for name in ("kernel_size", "stride", "groups", "padding")}
    text = "" if _is_linear(module) else " with " + ", ".join(f"{name} {value}" for name, value in options.items())
    return f"{type(module).__name__} {module.in_channels} -> {module.out_channels}{text}"
