"""A module of somebody else's whose batches are mixed, in any container, and its loss by hand."""

import dataclasses
from collections import namedtuple

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_reg.callbacks import BatchMixing
from lightning_reg.transforms import Mixup
from tests.helpers import quiet_trainer

COUNT, CLASSES = 6, 3
CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5])
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])


class Recorded(Mixup):
    """Keeps what was drawn for the latest batch."""

    def drawn(self, inputs, *, stream):
        self.latest = super().drawn(inputs, stream=stream)
        return self.latest


class Items(Dataset):
    def __init__(self, make, inputs, targets):
        self.parts = make, inputs, targets

    def __len__(self):
        return len(self.parts[1])

    def __getitem__(self, index):
        return self.parts[1][index], self.parts[2][index]


@dataclasses.dataclass  # a frozen one is refused by Lightning
class Data:
    image: torch.Tensor
    label: torch.Tensor


@dataclasses.dataclass
class Checked(Data):
    """As libraries have it that check whatever becomes a part of a batch."""

    def __setattr__(self, name, value):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is no tensor")
        super().__setattr__(name, value)


Named = namedtuple("Named", ["image", "label"])
CONTAINERS = {
    "tuple": (lambda x, y: (x, y), 0, 1, lambda batch: (batch[0], batch[1])),
    "list": (lambda x, y: [y, x], 1, 0, lambda batch: (batch[1], batch[0])),
    "dict": (lambda x, y: {"x": x, "y": y}, "x", "y", lambda batch: (batch["x"], batch["y"])),
    "named tuple": (Named, "image", 1, lambda batch: (batch.image, batch.label)),
    "data class": (Data, "image", "label", lambda batch: (batch.image, batch.label)),
    "checked data class": (Checked, "image", "label", lambda batch: (batch.image, batch.label)),
    "nested": (
        lambda x, y: {"in": (x,), "y": y},
        (lambda batch: batch["in"][0], lambda batch, value: {**batch, "in": (value,)}),
        "y",
        lambda batch: (batch["in"][0], batch["y"]),
    ),
}


class Theirs(LightningModule):
    """Knows nothing of us."""

    def __init__(self, loss, unpack, shape):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), CLASSES))
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.loss, self.unpack = loss, unpack
        self.calls, self.losses, self.labels = [], [], []
        self.network.register_forward_hook(lambda _, args, __: self.calls.append(args[0].clone()))

    def training_step(self, batch):
        inputs, targets = self.unpack(batch)
        logits = self.network(inputs)
        loss = self.loss(logits, targets)
        if not targets.is_floating_point():
            self.accuracy(logits, targets)
            self.log("accuracy", self.accuracy)
        self.labels.append(targets.clone())
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch):
        inputs, targets = self.unpack(batch)
        self.log("val_loss", self.loss(self.network(inputs), targets))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)  # so that every loss can be computed again


def inputs_of(shape):
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(0))


def trained(mix, loss, targets, *, container="tuple", shape=(4,), max_epochs=1, **settings):
    make, input_key, target_key, unpack = CONTAINERS[container]
    torch.manual_seed(3)
    module = Theirs(loss, unpack, shape)

    def collate(items):
        return make(torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items]))

    loader = DataLoader(Items(make, inputs_of(shape), targets), batch_size=COUNT, collate_fn=collate)
    callback = BatchMixing(mix, input_key=input_key, target_key=target_key, **settings)
    draws = []
    drawn = mix.drawn
    mix.drawn = lambda *args, **kwargs: draws.append(drawn(*args, **kwargs)) or draws[-1]
    trainer = quiet_trainer(callback, max_epochs=max_epochs)
    trainer.fit(module, loader, loader)
    return module, draws, trainer


def by_hand(loss, module, draw, targets, shape=(4,)):
    """λ·L(y_a) + (1-λ)·L(y_b), of the inputs as they were mixed."""
    logits = module.network(draw.change(inputs_of(shape)))
    w = draw.minor_weight
    return (1 - w) * loss(logits, targets) + w * loss(logits, targets.roll(1, 0))
