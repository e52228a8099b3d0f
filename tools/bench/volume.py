"""Four organs of one volume: a cached support bank against slice by slice, class by class."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def volume(repeats: int) -> list[dict]:
    from apscl_fewshot.decoders import PANetDecoder
    from apscl_fewshot.encoder import ResNetEncoder
    from apscl_fewshot.network import FewShotNetwork
    from apscl_fewshot.position import PositionPrior
    from apscl_fewshot.protocol import SupportBank, choose_support, embed_slices, segment

    depth, side, labels = 36, 128, [1, 2, 3, 4]
    encoder = ResNetEncoder("resnet18", in_channels=1, feat_dim=128, width=32, norm="group")
    network = FewShotNetwork(encoder, PANetDecoder(), position=PositionPrior()).eval()
    label = torch.zeros(depth, side, side, dtype=torch.uint8)
    for index, organ in enumerate(labels):
        label[4:32, 10 + 28 * index : 30 + 28 * index, 40:80] = organ
    scan = {"image": torch.randn(depth, 1, side, side), "label": label, "case": "support"}
    query = torch.randn(depth, 1, side, side)
    parts = [min(2, z * 3 // depth) for z in range(depth)]
    passes = [0]
    encoder.register_forward_hook(lambda module, inputs, result: passes.__setitem__(0, passes[0] + len(inputs[0])))

    @torch.no_grad()
    def cached() -> torch.Tensor:
        bank = SupportBank(network, [scan], labels)
        embedded = embed_slices(network, query)
        return torch.stack([segment(network, bank, embedded, organ, (side, side), parts) for organ in labels])

    @torch.no_grad()
    def plain() -> torch.Tensor:
        rows = choose_support([scan], labels, 3)
        volumes = []
        for organ in labels:
            slices = []
            for z in range(depth):
                at = rows[organ][parts[z]][0][1]
                mask = (scan["label"][at] == organ)[None, None, None].float()
                logits = network(scan["image"][at][None, None], mask, query[z : z + 1])[0]
                slices.append(logits[0, 1] - logits[0, 0])
            volumes.append(torch.stack(slices))
        return torch.stack(volumes)

    (fast, fast_passes, first), (slow, slow_passes, second) = (_best(run, repeats, passes) for run in (cached, plain))
    return [
        {
            "part": "four organs of one volume",
            "slices": depth,
            "cached CPU s": fast,
            "plain CPU s": slow,
            "ratio": slow / fast,
            "encoder passes": f"{fast_passes} against {slow_passes}",
            "largest difference": float((first - second).abs().max()),
        }
    ]


def _best(run: Callable[[], torch.Tensor], repeats: int, passes: list[int]) -> tuple[float, int, torch.Tensor]:
    """Least CPU time (a busy machine does not change it), encoder passes of one run, and the result."""
    passes[0] = 0
    result, count, times = run(), passes[0], []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times), count, result
