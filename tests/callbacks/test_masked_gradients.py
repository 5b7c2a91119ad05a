"""A mask that the module applies to its gradients holds for penalties and noise, as for terms in its loss."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.callbacks import (
    GradientCentralization,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    OrthogonalPenalty,
)
from tests.helpers import quiet_trainer

BATCHES = 6
STRENGTH = 0.5


def data():
    generator = torch.Generator().manual_seed(1)
    return DataLoader(torch.randn(8 * BATCHES, 4, generator=generator, dtype=torch.float64), batch_size=8)


class Masked(LightningModule):
    """Its first row isn't trained."""

    def __init__(self, penalty=0.0, *, fused=False, without_loss=()):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4, dtype=torch.float64)
        self.start = self.layer.weight.detach().clone()
        self.penalty = penalty
        self.fused = fused
        self.without_loss = without_loss

    def training_step(self, batch, batch_idx):
        if batch_idx in self.without_loss:
            return None
        return F.mse_loss(self.layer(batch), batch) + self.penalty / 2 * (self.layer.weight**2).sum()

    def on_after_backward(self):
        mask = torch.ones_like(self.layer.weight)
        mask[0] = 0
        self.layer.weight.grad = self.layer.weight.grad * mask

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, fused=self.fused)


class WarmsUp(Masked):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.param_groups[0]["lr"] = 0.01 * (batch_idx + 1)
        optimizer.step(closure=optimizer_closure)


def scaled():
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]


def assert_equal(module, expected):
    assert torch.equal(expected.layer.weight[0], expected.start[0])
    torch.testing.assert_close(module.layer.weight, expected.layer.weight, rtol=0, atol=1e-12)
    assert torch.equal(module.layer.weight[0], module.start[0])


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("plugins", [list, scaled], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"without_loss": (0, 2)}], ids=str)
@pytest.mark.parametrize("kind", [Masked, WarmsUp])
def test_a_penalty_is_masked_as_in_the_loss(kind, settings, accumulate, plugins):
    module, expected = kind(**settings), kind(STRENGTH, **settings)
    for trained, techniques in ((module, [L2Penalty(weight=STRENGTH)]), (expected, [])):
        quiet_trainer(*techniques, accumulate_grad_batches=accumulate, max_epochs=2, plugins=plugins()).fit(
            trained, data()
        )
    assert_equal(module, expected)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_is_measured_and_clipped_has_been_masked(accumulate):
    module, expected = Masked(), Masked(STRENGTH)
    metrics = []
    for trained, techniques in ((module, [L2Penalty(weight=STRENGTH)]), (expected, [])):
        trainer = quiet_trainer(
            *(GradientMonitor(), GradientClipping(max_norm=0.1), *techniques),
            accumulate_grad_batches=accumulate,
            log_every_n_steps=1,
        )
        trainer.fit(trained, data())
        metrics.append({tag: value for tag, value in trainer.callback_metrics.items() if tag.startswith("grad/")})
    assert_equal(module, expected)
    assert metrics[0].keys() == metrics[1].keys()
    assert "grad/norm" in metrics[0]
    for tag, value in metrics[1].items():
        torch.testing.assert_close(metrics[0][tag], value, rtol=1e-6, atol=0, msg=tag)


@pytest.mark.parametrize(
    "technique",
    [
        L1Penalty(weight=0.1),
        GroupLassoPenalty(weight=0.1),
        OrthogonalPenalty(weight=0.1),
        GradientNoise(eta=0.1),
        GradientCentralization(),
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_frozen_rows_stay(technique):
    module = Masked()
    quiet_trainer(technique).fit(module, data())
    assert torch.equal(module.layer.weight[0], module.start[0])
    assert not torch.equal(module.layer.weight[1], module.start[1])


def test_a_hook_that_only_looks_changes_nothing():
    class Plain(Masked):
        on_after_backward = LightningModule.on_after_backward

    class Looking(Masked):
        def on_after_backward(self):
            self.seen = self.layer.weight.grad.norm()

    techniques = [L2Penalty(weight=STRENGTH), GradientNoise(eta=0.1), GradientCentralization()]
    modules = [Plain(), Looking()]
    for module in modules:
        quiet_trainer(*techniques, accumulate_grad_batches=4).fit(module, data())
    torch.testing.assert_close(modules[0].layer.weight, modules[1].layer.weight, rtol=0, atol=0)
