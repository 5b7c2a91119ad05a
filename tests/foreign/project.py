"""What a foreign project is, and the data and the network that most of them share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCHES = 4
BATCH_SIZE = 8
EPOCHS = 2


def features():
    return torch.randn(BATCHES * BATCH_SIZE, 6, generator=torch.Generator().manual_seed(1))


def labels():
    return features()[:, :3].argmax(1)


def pairs():
    return DataLoader(TensorDataset(features(), labels()), batch_size=BATCH_SIZE)


@dataclass(frozen=True)
class Project:
    """Somebody's module and how they train it.

    Attributes:
        make: Makes the module; the random seed is set before.
        train: Makes the training loader.
        validation: Makes the validation loader, or several; None where the project validates nothing.
        settings: Of the Trainer.
        callbacks: Makes the callbacks that the project has of its own.
        logger: Makes the logger that it writes to; where None, one that remembers everything.
        input_key: Where the inputs are in a batch.
        target_key: Where the targets are in a batch.
        watched: A metric that the project logs in every epoch.
    """

    make: Callable[[], LightningModule]
    train: Callable[[], Any] = pairs
    validation: Callable[[], Any] | None = pairs
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = list
    logger: Callable[[], Logger] | None = None
    input_key: Any = 0
    target_key: Any = 1
    watched: str = "val_loss"


class Network(nn.Module):
    """A classifier with a layer of every kind that a technique looks for."""

    def __init__(self, outputs=3):
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.norm = nn.BatchNorm1d(12)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(12, 12)
        self.second_act = nn.Tanh()
        self.head = nn.Linear(12, outputs)

    def features(self, inputs):
        return self.second_act(self.hidden(self.drop(self.act(self.norm(self.first(inputs))))))

    def forward(self, inputs):
        return self.head(self.features(inputs))


class SomebodysClassifier(LightningModule):
    """The plainest project; those that differ in one thing alone inherit from it."""

    def __init__(self):
        super().__init__()
        self.network = Network()

    def forward(self, inputs):
        return self.network(inputs)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
