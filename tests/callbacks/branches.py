"""A module of two branches, and the penalties of its weights with what a textbook writes for them."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from lightning_reg.callbacks import (
    ElasticNetPenalty,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    OrthogonalPenalty,
)

STRENGTH = 0.1


class Branches(LightningModule):
    """Of two branches one is never taken; one layer is frozen; two share a weight."""

    def __init__(self, make_optimizer=None):
        super().__init__()
        torch.manual_seed(0)
        self.taken = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.taken.weight
        self.make_optimizer = make_optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    def forward(self, inputs):
        return self.tied(self.frozen(self.taken(inputs)))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch), batch)

    def configure_optimizers(self):
        return self.make_optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])


def batches(count=4):
    return torch.randn(count, 4, 4, generator=torch.Generator().manual_seed(1))


def assert_equal_weights(module, expected):
    for (name, value), other in zip(module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-7, msg=name)


class TwoOptimizers(Branches):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(F.mse_loss(self(batch), batch))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.taken.parameters(), lr=0.1), torch.optim.SGD(self.idle.parameters(), lr=0.1)]


# What holds for every penalty of weights.


MAKES = {
    "L1Penalty": lambda **settings: L1Penalty(weight=0.1, **settings),
    "L1Penalty proximal": lambda **settings: L1Penalty(weight=0.1, proximal=True, **settings),
    "L2Penalty": lambda **settings: L2Penalty(weight=0.1, **settings),
    "ElasticNetPenalty": lambda **settings: ElasticNetPenalty(l1=0.1, l2=0.1, **settings),
    "GroupLassoPenalty": lambda **settings: GroupLassoPenalty(weight=0.1, **settings),
    "OrthogonalPenalty": lambda **settings: OrthogonalPenalty(weight=0.1, **settings),
    "L2SPPenalty": lambda **settings: L2SPPenalty(weight=0.1, **settings),
}


each_penalty = pytest.mark.parametrize(("make", "name"), [(make, name) for name, make in MAKES.items()], ids=MAKES)


def _rows(weights):
    return [row for weight in weights for row in weight.flatten(1)]


# The penalties of MAKES as a textbook writes them, of weights and of those that training started from.


TEXTBOOK = {
    "L1Penalty": lambda weights, _: 0.1 * sum(weight.abs().sum() for weight in weights),
    "L2Penalty": lambda weights, _: 0.1 / 2 * sum((weight**2).sum() for weight in weights),
    "ElasticNetPenalty": lambda weights, _: sum(0.1 * (w.abs().sum() + (w**2).sum() / 2) for w in weights),
    "GroupLassoPenalty": lambda weights, _: (
        0.1 * sum(len(row) ** 0.5 * (row**2).sum() ** 0.5 for row in _rows(weights))
    ),
    "OrthogonalPenalty": lambda weights, _: 0.1 * sum(((w @ w.T - torch.eye(len(w))) ** 2).sum() for w in weights),
    "L2SPPenalty": lambda weights, starts: (
        0.1 / 2 * sum(((w - s) ** 2).sum() for w, s in zip(weights, starts, strict=True))
    ),
}
