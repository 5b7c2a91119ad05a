"""What the conformance suite doesn't cover: parameters without gradient, frozen and tied ones, several optimizers."""

import contextlib
import gc
import types
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.callbacks import (
    ActivityPenalty,
    ConfidencePenalty,
    ElasticNetPenalty,
    GradientCentralization,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    MaxNorm,
    NonNegative,
    OrthogonalPenalty,
    StrengthSchedule,
    UnitNorm,
)
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
    own = {name: value for name, value in vars(penalty).items() if name not in ("log", "log_dict")}  # Lightning's
    reached, todo = set(), [own]
    while todo:  # everything that the callback holds, however deep
        entry = todo.pop()
        if id(entry) not in reached and not isinstance(entry, (type, types.ModuleType, types.FunctionType)):
            reached.add(id(entry))
            todo += gc.get_referents(entry)
    assert not {id(parameter) for parameter in module.parameters()} & reached


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
TEXTBOOK["L1Penalty proximal"] = TEXTBOOK["L1Penalty"]


@pytest.mark.parametrize("cls", [L1Penalty, L2Penalty, GroupLassoPenalty, OrthogonalPenalty, L2SPPenalty])
@pytest.mark.parametrize("weight", [-1e-4, float("nan"), float("inf")])
def test_bad_strengths_are_refused(cls, weight):
    with pytest.raises(SettingError, match=rf"weight must be in \[0, ∞\), but is {weight}"):
        cls(weight=weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l1": -1.0}, r"l1 must be in \[0, ∞\), but is -1.0"),
        ({"l1": 1.0, "l2": float("nan")}, r"l2 must be in \[0, ∞\)"),
        ({}, "l1 or l2 must be given; 0 switches the penalty off"),
    ],
)
def test_bad_strengths_of_an_elastic_net_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        ElasticNetPenalty(**settings)


def test_unknown_group_is_refused():
    with pytest.raises(SettingError, match="group must be one of output, input, but is 'outputs'; did you mean"):
        GroupLassoPenalty(weight=0.1, group="outputs")


@each_penalty
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": ("takn.*",)}, r"include pattern 'takn\.\*' matches no parameter; there are taken\."),
        ({"exclude": ("takn.*",)}, r"exclude pattern 'takn\.\*' matches no parameter"),
        ({"include": ("*.bias",)}, "leaves no parameter"),
    ],
)
def test_patterns_that_match_nothing_are_refused_at_fit_start(make, name, settings, message):
    with pytest.raises(SettingError, match=message):
        quiet_trainer(make(**settings)).fit(Branches(), batches())


class WithoutRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        return closure()


@pytest.mark.parametrize(
    "penalty",
    [
        L1Penalty(weight=0.1, proximal=True),
        ElasticNetPenalty(l1=0.1, proximal=True),
        GroupLassoPenalty(weight=0.1, proximal=True),
    ],
)
def test_proximal_needs_a_learning_rate(penalty):
    with pytest.raises(SettingError, match="proximal must be False with WithoutRate, whose groups have no lr"):
        quiet_trainer(penalty).fit(Branches(WithoutRate), batches())


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


@each_penalty
def test_value_share_and_schedule_are_logged(make, name):
    """At the second of two steps, when L2-SP's weights have left the point that they started from."""
    penalty, module = make(schedule=StrengthSchedule(kind="constant", end=0.5)), Branches()
    before = Before()
    trainer = quiet_trainer(penalty, before, log_every_n_steps=1)
    trainer.fit(module, batches(2))
    tag, logged = f"penalty/{penalty.tag}", trainer.callback_metrics
    starts = [Branches().taken.weight.detach(), Branches().idle.weight.detach()]
    value = 0.5 * TEXTBOOK[name](before.weights, starts)
    assert value > 0
    torch.testing.assert_close(logged[tag], value)
    torch.testing.assert_close(logged[f"{tag}_share"], value / (value + before.loss))
    assert logged[f"schedule/{penalty.tag}"] == 0.5


class Before(Callback):
    """Weights and loss of the latest step, as they were before it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights = [pl_module.taken.weight.detach().clone(), pl_module.idle.weight.detach().clone()]
        with torch.no_grad():
            self.loss = F.mse_loss(pl_module(batch), batch)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_share_is_that_of_the_users_loss(accumulate, scaled):
    """Neither divided by the number of accumulated batches nor multiplied by a gradient scaler's scale."""
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))] if scaled else []
    penalty, module = L2Penalty(weight=0.1), Branches()
    with torch.no_grad():
        loss = F.mse_loss(module(batches()[0]), batches()[0])
    trainer = quiet_trainer(penalty, plugins=plugins, accumulate_grad_batches=accumulate, log_every_n_steps=1)
    trainer.fit(module, batches(1).repeat(accumulate, 1, 1))
    value = trainer.callback_metrics["penalty/l2"]
    share = trainer.callback_metrics["penalty/l2_share"]
    torch.testing.assert_close(share, value / (value + loss), rtol=2**-10 if scaled else 1e-6, atol=0)


def test_fraction_of_exact_zeros_is_logged():
    trainer = quiet_trainer(L1Penalty(weight=100.0, proximal=True), log_every_n_steps=1)
    trainer.fit(Branches(), batches(2))
    assert trainer.callback_metrics["penalty/l1_zeros"] == 1


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


def test_transposed_convolutions_are_grouped_by_their_outputs():
    class Upsamples(Branches):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 3, 2)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 0 * self.up.weight.sum()

    for group, dim in (("output", 1), ("input", 0)):
        module = Upsamples()
        start = module.up.weight.detach().clone()
        penalty = GroupLassoPenalty(weight=0.1, group=group, include=("up.*",))
        quiet_trainer(penalty).fit(module, batches(1))
        units = start.movedim(dim, 0).flatten(1)
        change = 0.1 * 0.1 * units.shape[1] ** 0.5 * units / units.norm(dim=1, keepdim=True)
        expected = (units - change).view_as(start.movedim(dim, 0)).movedim(0, dim)
        torch.testing.assert_close(module.up.weight.detach(), expected)


def test_starting_point_is_that_of_the_first_fit_and_its_absence_is_said(tmp_path):
    plain = Branches()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(plain, batches())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(UserWarning, match="holds no starting point of an L2SPPenalty"):
        quiet_trainer(L2SPPenalty(weight=0.1), max_epochs=2).fit(
            Branches(), batches(), ckpt_path=tmp_path / "plain.ckpt"
        )


def test_starting_point_of_other_weights_is_refused(tmp_path):
    trainer = quiet_trainer(L2SPPenalty(weight=0.1))
    trainer.fit(Branches(), batches())
    trainer.save_checkpoint(tmp_path / "start.ckpt")

    class Wider(Branches):
        strict_loading = False

        def __init__(self):
            super().__init__()
            self.more = nn.Linear(4, 4)

        def on_load_checkpoint(self, checkpoint):
            checkpoint["optimizer_states"] = [self.make_optimizer(self.parameters()).state_dict()]

        def configure_optimizers(self):
            return self.make_optimizer(self.parameters())

    with pytest.raises(SettingError, match=r"ckpt_path must hold the starting point of more\.weight"):
        quiet_trainer(L2SPPenalty(weight=0.1), max_epochs=2).fit(Wider(), batches(), ckpt_path=tmp_path / "start.ckpt")


class Batch(NamedTuple):
    inputs: torch.Tensor
    targets: torch.Tensor


@pytest.mark.parametrize("container", [tuple, list, dict, Batch])
@pytest.mark.parametrize("returned", ["tensor", "dict"])
def test_any_batch_and_any_output(container, returned):
    """Every technique on one module, whatever its batches are, and whatever its training step returns."""

    class Foreign(Branches):
        def training_step(self, batch):
            inputs = batch["inputs"] if container is dict else batch[0]
            assert type(batch) is container
            loss = F.cross_entropy(torch.relu(self(inputs)), torch.zeros(len(inputs), dtype=torch.long))
            return loss if returned == "tensor" else {"loss": loss, "more": 1}

    def make(entry):
        if container is dict:
            return {"inputs": entry, "targets": entry}
        return Batch(entry, entry) if container is Batch else container((entry, entry))

    everything = [
        L1Penalty(weight=0.1), L1Penalty(weight=0.1, proximal=True), L2Penalty(weight=0.1),
        ElasticNetPenalty(l1=0.1), GroupLassoPenalty(weight=0.1), OrthogonalPenalty(weight=0.1),
        L2SPPenalty(weight=0.1), ActivityPenalty(l1=0.1, include=("taken",)), ConfidencePenalty(weight=0.1),
        GradientClipping(), GradientMonitor(), GradientNoise(), GradientCentralization(), MaxNorm(), UnitNorm(),
        NonNegative(),
    ]  # fmt: skip
    module = Foreign()
    trainer = quiet_trainer(*everything, log_every_n_steps=1)
    trainer.fit(
        module, DataLoader([make(entry) for entry in batches()], batch_size=None, collate_fn=lambda batch: batch)
    )
    assert not torch.equal(module.taken.weight, Foreign().taken.weight)
    assert {"penalty/activity", "penalty/confidence", "penalty/l1_2_zeros", "grad/norm"} <= set(
        trainer.callback_metrics
    )
