"""Labels alone."""

import torch
from torch import nn

from common.losses import DiceCERegionLoss
from common.semi_supervised import Supervised

TOTAL = 100


def test_supervised(network, teacher, batch):
    done = Supervised()(network, teacher, {k: batch[k] for k in ("image", "label")}, 5, TOTAL)
    expected = DiceCERegionLoss()(network(batch["image"]), batch["label"][:, 0])
    assert torch.equal(done.loss, expected) and done.unlabelled is None and done.terms == {}
    assert torch.equal(network.classifier(done.labelled.features), done.labelled.logits)
    assert torch.equal(done.labelled.labels, batch["label"][:, 0])


def test_another_loss_takes_the_place_of_the_usual(network, teacher, batch):
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    done = Supervised(loss)(network, teacher, batch, 5, TOTAL)
    assert torch.equal(done.loss, loss(done.labelled.logits, batch["label"][:, 0]))
