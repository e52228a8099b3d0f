"""Inference: a network that carries its annotated scans, and maps of how sure it is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import SliceInferer
from monai.transforms import MapTransform

from common.data import CaseDataset, DataError, Preprocessing

from .adaptation import Adaptation
from .data import as_slices, read_scans
from .network import FewShotNetwork
from .protocol import SupportBank, slice_key
from .sample import generate_sample_data

logger = logging.getLogger(__name__)
SPACING_TOLERANCE = 0.1


class Support:
    """The annotated scans that an inference starts from: K scans and the N classes to segment.

    Args:
        support_dir: a data set whose ``training`` scans are the support; the sample data's is generated when missing.
        preprocessing: of the model.
        structures: class ids to segment; null takes every label of the data set.
        parts: support slices per scan and class.
        sample_dir: where the sample data belongs.

    Raises:
        DataError: what :func:`.read_scans` refuses; a class the support does not name or does not show, or scans whose
            spacing differs by more than a tenth; all of them in one error.
    """

    def __init__(
        self,
        support_dir: str,
        preprocessing: Preprocessing,
        structures: Sequence[int] | None = None,
        parts: int = 3,
        sample_dir: str | None = None,
    ) -> None:
        if (
            sample_dir is not None
            and Path(support_dir) == Path(sample_dir) / "support"
            and not Path(sample_dir).exists()
        ):
            logger.info("generating sample data in %s", sample_dir)
            generate_sample_data(sample_dir)
        dataset, _ = read_scans(support_dir, preprocessing)
        self.labels = sorted(dataset.labels) if structures is None else [int(label) for label in structures]
        unknown = [label for label in self.labels if label not in dataset.labels]
        if unknown:
            raise DataError(f"the support {support_dir} has no label {unknown}; it has {dataset.labels}.")
        self.names = {label: dataset.labels[label] for label in self.labels}
        cases = CaseDataset(dataset.training, preprocessing.evaluation())
        self.scans = [as_slices(cases[index]) for index in range(len(cases))]
        self.parts = parts
        _refuse_mixed_spacing(self.scans)


def _refuse_mixed_spacing(scans: list[dict[str, Any]]) -> None:
    """Scans are compared on one pixel grid, so that pixels of another size show the same organ at another scale."""
    first = np.array(scans[0]["spacing"][:2])
    wrong = [
        f"{scan['case']}: expected about {first.round(3).tolist()} mm in the plane, as {scans[0]['case']} has; "
        f"found {np.round(scan['spacing'][:2], 3).tolist()} mm"
        for scan in scans[1:]
        if (np.abs(np.array(scan["spacing"][:2]) / first - 1) > SPACING_TOLERANCE).any()
    ]
    if wrong:
        raise DataError("support scans differ in spacing; resample them to one spacing:\n  " + "\n  ".join(wrong))


class SupportedNetwork(FewShotNetwork):
    """The deployment form: a few-shot network with its support bank in buffers, from one image to logits.

    The bank is made from ``support`` when the network is built and again whenever weights are loaded; it is not part of
    the state dict, which is that of training. A slice takes, for every class, the support slice it looks most like.
    With ``adaptation`` the network learns from the support whenever weights are loaded, and classifies with the
    prototypes that it learned. Scriptable: the bank or the prototypes then travel inside the TorchScript file.

    Args:
        network: as trained; its parts become those of this one, under the same names.
        support: the annotated scans.
        adaptation: how the network goes on learning from them, or null.

    Shape:
        ``(B, C, H, W)`` to logits ``(B, 1 + N, H, W)``; without ``adaptation`` the background's are zero and the others
        log-odds.

    Raises:
        ValueError: the decoder's code of a slice has no fixed size, and so no place in a buffer (ALPNet).
    """

    def __init__(self, network: FewShotNetwork, support: Support, adaptation: Adaptation | None = None) -> None:
        super().__init__(network.encoder, network.decoder, network.prior, network.position)
        self.support, self.adaptation, self.adapted = support, adaptation, adaptation is not None
        self.refresh(None if adaptation is None else Adaptation(steps=0))  # what is trained comes with the weights
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh(module.adaptation))

    def refresh(self, adaptation: Adaptation | None) -> None:
        """Read the support anew with the present weights."""
        training = self.training
        self.eval()
        if adaptation is not None:
            prototypes, positions = adaptation(self, self.support.scans, self.support.labels)
            bank = {"prototypes": prototypes, "guide": torch.zeros(0), "position": positions, "keys": torch.zeros(0)}
        else:
            bank = self._bank()
        for name, value in bank.items():
            self.register_buffer(f"bank_{name}", value, persistent=False)
        self.train(training)

    def _bank(self) -> dict[str, torch.Tensor]:
        bank = SupportBank(self, self.support.scans, self.support.labels, self.support.parts)
        if "prototypes" not in bank.codes[bank.labels[0]][0]:
            raise ValueError(
                f"decoder: expected one whose code has a fixed size, found {type(self.decoder).__name__}, which is "
                "there to be compared in evaluation; run the inference with a model of another decoder."
            )
        found = {"keys": torch.stack([torch.stack(bank.keys[label]) for label in bank.labels])}
        for name in ("prototypes", "guide", "position"):
            rows = [[code.get(name, torch.zeros(0)) for code in bank.codes[label]] for label in bank.labels]
            found[name] = torch.stack([torch.stack(row) for row in rows])
        return found

    def forward(self, image: torch.Tensor, sample: bool = False) -> torch.Tensor:
        features, frames = self.embed(image, sample)
        size = [image.shape[2], image.shape[3]]
        if self.adapted:
            return self.classify(features, frames, self.bank_prototypes, self.bank_position, size)
        key = slice_key(features)
        every = torch.arange(image.shape[0], device=image.device)
        logits = [torch.zeros_like(image[:, 0], dtype=torch.float32)]
        for n in range(self.bank_keys.shape[0]):
            odds = []
            for p in range(self.bank_keys.shape[1]):
                code = {
                    "prototypes": self.bank_prototypes[n, p],
                    "guide": self.bank_guide[n, p],
                    "position": self.bank_position[n, p],
                }
                pair = self.decode(features, frames, code, size)
                odds.append(pair[:, 1] - pair[:, 0])
            part = (key @ self.bank_keys[n].t()).argmax(dim=1)
            logits.append(torch.stack(odds)[part, every])
        return torch.stack(logits, dim=1)


class UncertaintyInferer(SliceInferer):
    """Predictive entropy in nats over draws of the anatomical latent, slice by slice.

    .. math:: H\\Big[\\tfrac1S \\sum_s \\mathrm{softmax}(\\ell(x, z_s))\\Big], \\quad z_s \\sim P(z | x)

    Args:
        num_samples: S; every draw costs a pass.
        kwargs: as :class:`monai.inferers.SliceInferer`.

    Shape:
        ``(1, C, H, W, D)`` to ``(1, 1, H, W, D)``.
    """

    def __init__(self, num_samples: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_samples = num_samples

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        mean: torch.Tensor | None = None
        for _ in range(self.num_samples):
            # a closure, as SliceInferer does not hand arguments on
            drawn = super().__call__(inputs, lambda image: network(image, True, *args, **kwargs))
            drawn = drawn.softmax(1) / self.num_samples
            mean = drawn if mean is None else mean + drawn
        return -(mean * mean.clamp(1e-12, 1.0).log()).sum(1, keepdim=True)


class CheckQueryd(MapTransform):
    """Warn of a query volume that does not look like the support; what cannot be segmented was refused before."""

    def __init__(self, keys: Any, support: Support) -> None:
        super().__init__(keys)
        self.low, self.high = _range(np.concatenate([scan["native"].numpy().ravel()[::97] for scan in support.scans]))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        for key in self.key_iterator(data):
            name = str(getattr(data[key], "meta", {}).get("filename_or_obj", "the image"))
            self._warn_of_other_range(np.asarray(data[key]), name)
        return data

    def _warn_of_other_range(self, image: np.ndarray, name: str) -> None:
        low, high = _range(image.ravel()[::97])
        span = max(self.high - self.low, 1e-6)
        if not 0.2 < (high - low) / span < 5 or low < self.low - span:
            warnings.warn(
                f"{name}: values from {low:.4g} to {high:.4g}, the support's from {self.low:.4g} to {self.high:.4g}. A "
                "support of another modality teaches little; use a support scan of the same kind.",
                stacklevel=2,
            )


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (1, 99))
    return float(low), float(high)
