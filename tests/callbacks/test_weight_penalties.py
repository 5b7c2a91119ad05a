"""What the conformance suite doesn't cover: parameters without gradient, frozen and tied ones, several optimizers."""

import contextlib
import gc

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
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


def test_sparse_gradients_are_penalised_as_in_the_loss():
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


def test_thawed_layers_are_penalised_from_then_on():
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


def test_two_instances_add_up_and_log_apart():
    module, fit = (
        Branches(),
        quiet_trainer(
            L2Penalty(weight=0.04, include=("taken.*",)), L2Penalty(weight=0.06, include=("*",)), log_every_n_steps=1
        ),
    )
    fit.fit(module, batches(1))
    start = Branches()
    taken, idle = start.taken.weight.square().sum(), start.idle.weight.square().sum()
    torch.testing.assert_close(fit.callback_metrics["penalty/l2_1"], (0.02 * taken).detach())
    torch.testing.assert_close(fit.callback_metrics["penalty/l2_2"], (0.03 * (taken + idle)).detach())


@pytest.mark.parametrize("fails", [False, True])
def test_module_is_let_go_of(fails):
    class Fails(Callback):
        def on_train_batch_end(self, *_):
            raise InterruptedError

    penalty, module = L2Penalty(weight=STRENGTH), Branches()
    trainer = quiet_trainer(penalty, *([Fails()] if fails else []))
    with pytest.raises(InterruptedError) if fails else contextlib.nullcontext():
        trainer.fit(module, batches(1))
    held = gc.get_referents(*vars(penalty).values())
    assert not any(weight is entry for weight in module.parameters() for entry in held)
