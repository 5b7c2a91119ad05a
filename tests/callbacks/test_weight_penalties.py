"""Settings of the penalties of weights, which weights they reach, and what they log."""

import contextlib
import gc
import types
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
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
from tests.callbacks.branches import STRENGTH, TEXTBOOK, Branches, batches, each_penalty
from tests.helpers import quiet_trainer


def test_value_is_logged():
    module = Branches()
    fit = quiet_trainer(L2Penalty(weight=STRENGTH), log_every_n_steps=1)
    fit.fit(module, batches(1))
    start = Branches()
    expected = STRENGTH / 2 * ((start.taken.weight**2).sum() + (start.idle.weight**2).sum())
    torch.testing.assert_close(fit.callback_metrics["penalty/l2"], expected.detach())


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
