"""A penalty counts in the steps that its gradients reach: frozen and tied weights, several optimizers, lost steps."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_reg.callbacks import L1Penalty, L2Penalty
from lightning_reg.settings import SettingError
from tests.callbacks.branches import MAKES, STRENGTH, TEXTBOOK, Branches, TwoOptimizers, assert_equal_weights, batches
from tests.helpers import quiet_trainer


def by_hand(module):
    optimizer = module.configure_optimizers()
    weights = [module.taken.weight, module.idle.weight]
    for batch in batches():
        loss = module.training_step(batch, 0) + STRENGTH / 2 * sum((weight**2).sum() for weight in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


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


def test_lbfgs_is_refused_with_a_remedy():
    module = Branches(torch.optim.LBFGS)
    with pytest.raises(SettingError, match=r"LBFGS with L2Penalty.*first-order optimizer"):
        quiet_trainer(L2Penalty(weight=0.1)).fit(module, batches())


class Skipping(Branches):
    """Its training step returns no loss for some batches."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx in (1, 2) else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_without_a_loss_bring_no_penalty(accumulate):
    module = Skipping()
    quiet_trainer(L2Penalty(weight=STRENGTH), accumulate_grad_batches=accumulate).fit(module, batches())
    expected = Skipping()
    optimizer = expected.configure_optimizers()
    weights = [expected.taken.weight, expected.idle.weight]
    for index, batch in enumerate(batches()):
        loss = expected.training_step(batch, index)
        if loss is not None:
            penalty = STRENGTH / 2 * sum((weight**2).sum() for weight in weights)
            ((loss + penalty) / accumulate).backward()
        if (index + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert_equal_weights(module, expected)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_cleared_before_a_step_bring_no_penalty(set_to_none):
    class StepsEverySecondTime(Branches):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()  # whose gradients the next batch clears

        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            optimizer.zero_grad(set_to_none=set_to_none)

    module = StepsEverySecondTime()
    quiet_trainer(L2Penalty(weight=STRENGTH)).fit(module, batches())
    expected = Branches()
    optimizer = expected.configure_optimizers()
    for batch in batches()[1::2]:
        optimizer.zero_grad()
        penalty = STRENGTH / 2 * sum((weight**2).sum() for weight in (expected.taken.weight, expected.idle.weight))
        (expected.training_step(batch, 0) + penalty).backward()
        optimizer.step()
    assert_equal_weights(module, expected)


def test_sparse_gradients_are_penalized_as_in_the_loss():
    class Lookup(Branches):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 4, sparse=True)
            nn.init.ones_(self.table.weight)

        def training_step(self, batch, batch_idx):
            return self(batch).mean() + self.table(torch.tensor([1, 2])).square().sum()

    module, expected = Lookup(), Lookup()
    quiet_trainer(L2Penalty(weight=STRENGTH)).fit(module, batches(1))
    weights = [expected.taken.weight, expected.idle.weight, expected.table.weight]
    optimizer = expected.configure_optimizers()
    (expected.training_step(batches(1)[0], 0) + STRENGTH / 2 * sum((weight**2).sum() for weight in weights)).backward()
    optimizer.step()
    assert_equal_weights(module, expected)


def test_thawed_layers_are_penalized_from_then_on():
    class Thaws(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.frozen.weight.requires_grad_(batch_idx >= 2)

    def everything(module):
        return torch.optim.SGD(module.parameters(), lr=0.1)

    module = Branches()
    module.configure_optimizers = lambda: everything(module)
    penalty = L2Penalty(weight=STRENGTH, include=("frozen.*",))
    quiet_trainer(Thaws(), penalty, log_every_n_steps=1).fit(module, batches())
    expected = Branches()
    optimizer = everything(expected)
    for index, batch in enumerate(batches()):
        expected.frozen.weight.requires_grad_(index >= 2)
        optimizer.zero_grad()
        loss = expected.training_step(batch, index)
        if index >= 2:
            loss = loss + STRENGTH / 2 * expected.frozen.weight.square().sum()
        loss.backward()
        optimizer.step()
    assert_equal_weights(module, expected)


@pytest.mark.parametrize("name", [name for name in MAKES if name != "L1Penalty proximal"])
def test_two_optimizers_that_share_a_weight_get_it_once_a_backward_pass(name):
    """As it would be with the penalty in the loss: one pass, one gradient, two steps with it."""

    class Shares(Branches):
        def __init__(self, penalty=None):
            super().__init__()
            self.automatic_optimization = False
            self.penalty = penalty

        def configure_optimizers(self):
            return [torch.optim.SGD([self.taken.weight], lr=0.1), torch.optim.SGD([self.taken.weight], lr=0.05)]

        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers() if self._trainer else self.hand
            loss = F.mse_loss(self(batch), batch)
            backward = self.manual_backward if self._trainer else torch.Tensor.backward
            backward(loss if self.penalty is None else loss + self.penalty(self.taken.weight))
            for optimizer in optimizers:
                optimizer.step()
            self.zero_grad()

    module = Shares()
    quiet_trainer(MAKES[name]()).fit(module, batches())
    expected = Shares()
    expected.hand = expected.configure_optimizers()
    start = expected.taken.weight.detach().clone()
    expected.penalty = lambda weight: TEXTBOOK[name]([weight], [start])
    for index, batch in enumerate(batches()):
        expected.training_step(batch, index)
    assert_equal_weights(module, expected)


def test_two_optimizers_that_share_a_weight_shrink_it_each_by_its_own_rate():
    class Shares(Branches):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD([self.taken.weight], lr=rate) for rate in (0.1, 0.05)]

        def training_step(self, batch, batch_idx):
            self.manual_backward(0 * self.taken.weight.sum())
            for optimizer in self.optimizers():
                optimizer.step()

    module = Shares()
    quiet_trainer(L1Penalty(weight=1.0, proximal=True)).fit(module, batches(1))
    start = Branches().taken.weight
    torch.testing.assert_close(module.taken.weight, start.sign() * (start.abs() - 0.15).clamp(min=0))


def test_who_calls_backward_himself_gets_the_penalty_in_every_step():
    class Plain(TwoOptimizers):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                F.mse_loss(self(batch), batch).backward()
                optimizer.step()

    plain, usual = Plain(), TwoOptimizers()
    for module in (plain, usual):
        quiet_trainer(L2Penalty(weight=STRENGTH)).fit(module, batches())
    assert_equal_weights(plain, usual)


def test_a_step_that_the_scaler_skips_shrinks_nothing():
    class Explodes(Branches):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * torch.inf

    for fused in (False, True):
        module = Explodes(lambda parameters, fused=fused: torch.optim.SGD(parameters, lr=0.1, fused=fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        trainer = quiet_trainer(
            L1Penalty(weight=0.1, proximal=True), plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
        )
        trainer.fit(module, batches(2))
        assert_equal_weights(module, Branches())
