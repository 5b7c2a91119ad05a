"""What the conformance suite doesn't cover: parameters without gradient, frozen and tied ones, several optimizers."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_reg.callbacks import L2Penalty
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer

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


def by_hand(module):
    optimizer = module.configure_optimizers()
    weights = [module.taken.weight, module.idle.weight]
    for batch in batches():
        loss = module.training_step(batch, 0) + STRENGTH / 2 * sum((weight**2).sum() for weight in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def assert_equal_weights(module, expected):
    for (name, value), other in zip(module.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-7, msg=name)


def test_idle_frozen_and_tied_parameters_are_as_in_the_textbooks_loop():
    module = Branches()
    quiet_trainer(L2Penalty(weight=STRENGTH)).fit(module, batches())
    assert_equal_weights(module, by_hand(Branches()))
    assert not torch.equal(module.idle.weight, Branches().idle.weight)
    assert torch.equal(module.frozen.weight, Branches().frozen.weight)


def test_fused_optimizer_under_a_gradient_scaler():
    """It unscales by itself, so it is handed gradients that still carry the scale."""

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=0.01, fused=True)

    module = Branches(adam)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    quiet_trainer(L2Penalty(weight=STRENGTH), plugins=[MixedPrecision("16-mixed", "cpu", scaler)]).fit(
        module, batches()
    )
    expected = Branches(adam)
    optimizer, by_hand_scaler = expected.configure_optimizers(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in batches():
        with torch.autocast("cpu", dtype=torch.float16):
            loss = expected.training_step(batch, 0)
        penalty = STRENGTH / 2 * sum((weight**2).sum() for weight in (expected.taken.weight, expected.idle.weight))
        optimizer.zero_grad()
        by_hand_scaler.scale(loss + penalty).backward()
        by_hand_scaler.step(optimizer)
        by_hand_scaler.update()
    # Adam's first steps are lr · sign(gradient) wherever the gradient isn't tiny; rounding in float16 changes each by
    # at most 2⁻¹¹ of the way, which is 4 steps of 0.01.
    for value, other in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=4 * 0.01 * 2**-8)


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


def test_manual_optimization_with_two_optimizers():
    module = TwoOptimizers()
    quiet_trainer(L2Penalty(weight=STRENGTH)).fit(module, batches())
    expected = Branches()
    optimizers = TwoOptimizers.configure_optimizers(expected)
    for batch in batches():
        for optimizer, owned in zip(optimizers, (expected.taken, expected.idle), strict=True):
            optimizer.zero_grad()
            (F.mse_loss(expected(batch), batch) + STRENGTH / 2 * (owned.weight**2).sum()).backward()
            optimizer.step()
    assert_equal_weights(module, expected)


def test_value_is_logged():
    module = Branches()
    fit = quiet_trainer(L2Penalty(weight=STRENGTH), log_every_n_steps=1)
    fit.fit(module, batches(1))
    start = Branches()
    expected = STRENGTH / 2 * ((start.taken.weight**2).sum() + (start.idle.weight**2).sum())
    torch.testing.assert_close(fit.callback_metrics["penalty/l2"], expected.detach())


@pytest.mark.parametrize("weight", [-1e-4, float("nan"), float("inf")])
def test_bad_strength_is_refused(weight):
    with pytest.raises(SettingError, match=r"weight must be in \[0, ∞\)"):
        L2Penalty(weight=weight)


def test_pattern_that_matches_nothing_is_refused_at_fit_start():
    with pytest.raises(SettingError, match=r"include pattern 'takn.\*' matches no parameter; there are"):
        quiet_trainer(L2Penalty(weight=0.1, include=("takn.*",))).fit(Branches(), batches())


def test_lbfgs_is_refused_with_a_remedy():
    module = Branches(torch.optim.LBFGS)
    with pytest.raises(SettingError, match=r"LBFGS with L2Penalty.*first-order optimizer"):
        quiet_trainer(L2Penalty(weight=0.1)).fit(module, batches())
