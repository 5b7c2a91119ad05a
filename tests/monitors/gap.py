"""A module and data of somebody else's, whose gap is measured, and the gap by hand."""

import copy
import random
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from tests.helpers import quiet_trainer


class Somebodys(LightningModule):
    """Metrics objects, lists of outputs, counters, randomness and modes: all that could be disturbed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        self.metrics = MetricCollection(
            {"val_acc": MulticlassAccuracy(3, average="micro"), "val_auc": MulticlassAUROC(3)}
        )
        self.outputs = defaultdict(list)
        self.counted = 0
        self.register_buffer("seen", torch.zeros(()))
        self.drawn = []

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.metrics.update(logits.softmax(-1), batch[1])
        self.log("val_loss", loss, prog_bar=True)
        self.log_dict(self.metrics)
        self.outputs["losses"].append(loss)
        self.counted += len(batch[1])
        self.seen += len(batch[1])
        self.drawn += [random.random(), np.random.rand(), torch.rand(()).item()]

    def on_validation_epoch_end(self):
        self.log("val_by_hand", torch.stack(self.outputs["losses"]).mean())
        self.log("val_seen", self.seen)
        self.outputs["losses"].clear()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def samples(count=70, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def loaders(batch_size=16):
    return DataLoader(samples(), batch_size, shuffle=True), DataLoader(samples(30, seed=2), batch_size)


def fit(*callbacks, module=None, data=None, **settings):
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(3)
    module = Somebodys() if module is None else module
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 3, **settings})
    if data is None:
        trainer.fit(module, *loaders())
    else:
        trainer.fit(module, **data)
    return module, trainer


def by_hand(module, dataset):
    """Textbook: all samples at once, in float64, in evaluation mode."""
    net = copy.deepcopy(module.net).double().eval()
    inputs, labels = dataset.tensors
    logits = net(inputs.double())
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


class Reduces(Somebodys):
    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        losses = F.cross_entropy(logits, batch[1], reduction="none")
        self.log("val_loss", losses.mean())
        self.log("val_wrong", (logits.argmax(1) != batch[1]).sum().float(), reduce_fx="sum")
        self.log("val_worst", losses.max(), reduce_fx=torch.max)
        self.log("val_easiest", losses.min(), reduce_fx="min")

    def on_validation_epoch_end(self):
        pass
