"""Penalties and noise are there when the module clips gradients by hand, as terms in its loss would be."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.callbacks import (
    GradientMonitor,
    GradientNoise,
    L1Penalty,
    L2Penalty,
    OrthogonalPenalty,
)
from tests.helpers import quiet_trainer

THRESHOLD = 0.1


def batches(count=6):
    generator = torch.Generator().manual_seed(1)
    return DataLoader(torch.randn(8 * count, 4, generator=generator, dtype=torch.float64), batch_size=8)


class Manual(LightningModule):
    """Clips in its training step; each of two optimizers has a layer, and both train a third."""

    def __init__(self, penalty=0.0, *, set_to_none=True):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.first, self.second, self.both = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))
        self.penalty = penalty
        self.set_to_none = set_to_none
        self.longest = 0.0

    def loss(self, batch):
        loss = F.mse_loss(self.both(self.second(self.first(batch))), batch)
        return loss + self.penalty / 2 * sum((weight**2).sum() for weight in self.parameters() if weight.ndim > 1)

    def clip(self, optimizer, how="norm"):
        self.clip_gradients(optimizer, gradient_clip_val=THRESHOLD, gradient_clip_algorithm=how)
        for parameter in self.first.parameters():
            parameter.grad = parameter.grad.clone()  # other gradients than those to which terms were added

    def step(self, optimizer):
        before = [parameter.detach().clone() for parameter in self.parameters()]
        optimizer.step()
        pairs = zip(self.parameters(), before, strict=True)
        moved = torch.cat([(parameter - old).flatten() for parameter, old in pairs]).norm().item()
        self.longest = max(self.longest, moved)

    def configure_optimizers(self):
        first = [*self.first.parameters(), *self.both.parameters()]
        second = [*self.second.parameters(), *self.both.parameters()]
        return [torch.optim.SGD(parameters, lr=1.0) for parameters in (first, second)]


class BothAtOnce(Manual):
    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=self.set_to_none)
        self.manual_backward(self.loss(batch))
        for optimizer in optimizers:
            self.clip(optimizer)
        for optimizer in optimizers:
            self.step(optimizer)


class OneByOne(Manual):
    how = "norm"

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad(set_to_none=self.set_to_none)
            self.manual_backward(self.loss(batch))
            self.clip(optimizer, self.how)
            self.step(optimizer)


class ByValue(OneByOne):
    how = "value"


class Sometimes(Manual):
    """Clips in some batches, and leaves some steps out after it has clipped."""

    def training_step(self, batch, batch_idx):
        optimizer, _ = self.optimizers()
        optimizer.zero_grad(set_to_none=self.set_to_none)
        self.manual_backward(self.loss(batch))
        if batch_idx % 2 == 0:
            self.clip(optimizer)
        if batch_idx % 3 != 2:
            self.step(optimizer)


class OnlyTorchsBackward(Manual):
    def training_step(self, batch, batch_idx):
        optimizer, _ = self.optimizers()
        optimizer.zero_grad(set_to_none=self.set_to_none)
        self.manual_backward(self.loss(batch))
        self.clip(optimizer)
        self.step(optimizer)

    def manual_backward(self, loss, *args, **kwargs):
        loss.backward()


class BeforeStep(Manual):
    """Clips in the hook before the step, which comes after that of the callbacks."""

    def training_step(self, batch, batch_idx):
        optimizer, _ = self.optimizers()
        optimizer.zero_grad(set_to_none=self.set_to_none)
        self.manual_backward(self.loss(batch))
        self.step(optimizer)

    def on_before_optimizer_step(self, optimizer):
        self.clip(optimizer)


def scaled():
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


def assert_equal(module, other, atol=1e-12):
    for parameter, expected in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=atol)


# Where steps are left out, gradients that are kept as zeros don't say so.
@pytest.mark.parametrize(
    ("kind", "set_to_none"),
    [
        *((kind, True) for kind in (BothAtOnce, OneByOne, ByValue, Sometimes, OnlyTorchsBackward, BeforeStep)),
        *((kind, False) for kind in (BothAtOnce, OneByOne, ByValue, OnlyTorchsBackward, BeforeStep)),
    ],
)
def test_a_penalty_is_clipped_by_hand_as_in_the_loss(kind, set_to_none):
    module, expected = kind(set_to_none=set_to_none), kind(penalty=0.5, set_to_none=set_to_none)
    quiet_trainer(L2Penalty(weight=0.5)).fit(module, batches())
    quiet_trainer().fit(expected, batches())
    assert_equal(module, expected)
    assert expected.longest > 0


def test_a_penalty_is_clipped_by_hand_under_a_gradient_scaler():
    """What is clipped then is the scaled gradient, that of the penalty with it."""
    module, expected = OneByOne(), OneByOne(penalty=0.5)
    quiet_trainer(L2Penalty(weight=0.5), plugins=[scaled()]).fit(module, batches())
    quiet_trainer(plugins=[scaled()]).fit(expected, batches())
    assert_equal(module, expected)


@pytest.mark.parametrize("technique", [L1Penalty(weight=0.5), OrthogonalPenalty(weight=0.5), GradientNoise(eta=0.1)])
def test_no_step_is_longer_than_the_module_allows(technique):
    module = OneByOne()
    quiet_trainer(technique).fit(module, batches())
    assert 0.9 * THRESHOLD < module.longest < THRESHOLD + 1e-12


def test_proximal_shrinkage_belongs_to_the_optimizer_that_steps():
    class InTurn(BothAtOnce):
        def step(self, optimizer):
            super().step(optimizer)
            self.zeros = [int((layer.weight == 0).sum()) for layer in (self.first, self.second)]

    module = InTurn()
    quiet_trainer(L1Penalty(weight=0.2, proximal=True)).fit(module, batches(1))
    assert all(zeros > 0 for zeros in module.zeros)


@pytest.mark.parametrize("plugins", [list, lambda: [scaled()]], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("kind", [BothAtOnce, OneByOne, ByValue])
def test_the_monitor_reads_what_it_would_with_the_penalty_in_the_loss(kind, plugins):
    trainers = [
        quiet_trainer(GradientMonitor(), *techniques, plugins=plugins(), log_every_n_steps=1)
        for techniques in ([L2Penalty(weight=0.5)], [])
    ]
    for trainer, penalty in zip(trainers, (0.0, 0.5), strict=True):
        trainer.fit(kind(penalty=penalty), batches())
    ours, expected = (
        {tag: value for tag, value in trainer.callback_metrics.items() if tag.startswith("grad/")}
        for trainer in trainers
    )
    assert ours.keys() == expected.keys()
    for tag, value in expected.items():
        torch.testing.assert_close(ours[tag], value, rtol=1e-6, atol=0, msg=tag)
