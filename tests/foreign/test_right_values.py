"""What comes out where a foreign project and a technique meet, by hand."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn

from lightning_reg.callbacks import (
    BatchImages,
    BatchMixing,
    BestWeightsEarlyStopping,
    ConfidencePenalty,
    ExponentialMovingAverage,
    GeneralizationGap,
    GradientClipping,
    GradientMonitor,
    L2Penalty,
    Lookahead,
    SharpnessAwareMinimization,
    StochasticWeightAverage,
    StrengthSchedule,
    TemperatureScaling,
)
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.foreign.attached import NAMES, make, only_watches
from tests.foreign.fitting import PROJECTS, fit, fit_or_refusal, fitted_plainly, is_finite
from tests.foreign.project import BATCH_SIZE, SomebodysClassifier, features, labels
from tests.foreign.projects.changed_batches import InPlace, Pops
from tests.foreign.projects.networks import Focal
from tests.foreign.projects.steps import LooksAtClipping, ValidatesByTrainingStep
from tests.foreign.projects.weights import FreezesByTurns, Grows

ONE_STEP = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}


def variant(name, **changes):
    """A project with other fields."""
    return dataclasses.replace(PROJECTS[name], **changes)


# A step that is run again.


def test_masked_rows_stay_where_they_are_under_sharpness():
    torch.manual_seed(0)
    start = PROJECTS["gradient mask"].make().network.first.weight[:3]
    for attached in ([], [SharpnessAwareMinimization(rho=0.5)]):
        outcome = fit(PROJECTS["gradient mask"], attached)
        assert outcome.module.network.first.weight[:3].equal(start)


@pytest.mark.parametrize(("name", "kind"), [("batch changed in place", InPlace), ("labels popped", Pops)])
def test_the_second_pass_of_sharpness_sees_the_batch_as_it_came(name, kind):
    class LeavesItAlone(kind):
        def training_step(self, batch, batch_idx):
            copied = {key: value.clone() for key, value in batch.items()}
            return super().training_step(copied, batch_idx)

    technique = SharpnessAwareMinimization(rho=0.5)
    changing, leaving = (fit(variant(name, make=make), [copy.deepcopy(technique)]) for make in (kind, LeavesItAlone))
    assert all(a.equal(b) for a, b in zip(changing.weights, leaving.weights, strict=True))


# Weights that move, freeze or aren't real.


class RecordsHidden(Callback):
    """What the module has in its hidden layer when a batch has ended."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(pl_module.network.hidden.weight.detach().clone())


class MovesDataInItsStep(SomebodysClassifier):
    """Bounds a weight by other storage as soon as the optimizer has stepped."""

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.network.hidden.weight.data = self.network.hidden.weight.data.clamp(-0.2, 0.2)


def test_best_weights_of_layers_that_have_grown_since_are_left_where_they_are():
    class BestFirst(Grows):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", float(self.current_epoch))

    outcome = fit(variant("growing layers", make=BestFirst), [BestWeightsEarlyStopping("val_loss", patience=100)])
    assert any("best in epoch 0, but the module has had other layers since" in said for said in outcome.said)
    assert outcome.module.network.hidden.out_features == 16


class ReplacesLayers(SomebodysClassifier):
    """Begins the second epoch with another hidden layer in place of the first."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.network.hidden = nn.Linear(12, 12)
            self.trainer.optimizers = [self.configure_optimizers()]


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("kind", [MovesDataInItsStep, ReplacesLayers])
def test_an_average_is_of_the_weights_that_the_module_has(kind, buffers):
    recorded = RecordsHidden()
    average = ExponentialMovingAverage(decay=0.9, warmup=False, buffers=buffers)
    project = variant("plain", make=kind, callbacks=lambda: [recorded])
    outcome = fit(project, [average])
    expected = recorded.seen[0]
    for weight in recorded.seen[1:]:
        expected = 0.9 * expected + 0.1 * weight
    torch.testing.assert_close(outcome.module.network.hidden.weight, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("technique", [Lookahead(k=3), L2Penalty(weight=0.5), ExponentialMovingAverage(decay=0.5)])
def test_a_layer_that_is_frozen_stays_while_it_is(technique):
    starts, ends = [], []

    class Watched(FreezesByTurns):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            starts.append((self.network.first.weight.detach().clone(), self.network.hidden.weight.detach().clone()))

        def on_train_epoch_end(self):
            ends.append((self.network.first.weight.detach().clone(), self.network.hidden.weight.detach().clone()))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit(variant("frozen by turns", make=Watched, validation=None), [technique])
    assert ends[0][1].equal(starts[0][1])
    assert ends[1][0].equal(starts[1][0])
    assert not ends[1][1].equal(starts[1][1])


def test_complex_weights_are_measured_and_clipped_as_torch_does_it():
    torch.manual_seed(0)
    module = PROJECTS["complex weights"].make()
    before = [weight.detach().clone() for weight in module.parameters()]
    norms = []

    class Clips(PROJECTS["complex weights"].make):
        def on_before_optimizer_step(self, optimizer):
            norms.append(nn.utils.clip_grad_norm_(self.parameters(), 0.01).item())

    by_hand = fit(variant("complex weights", make=Clips, settings=ONE_STEP))
    outcome = fit(
        variant("complex weights", settings=ONE_STEP),
        [GradientMonitor(every_n_steps=1), GradientClipping(max_norm=0.01)],
    )
    assert outcome.trainer.callback_metrics["grad/norm"].item() == pytest.approx(norms[0], rel=1e-5)
    for one, other, start in zip(outcome.module.parameters(), by_hand.module.parameters(), before, strict=True):
        torch.testing.assert_close(one - start, other - start, rtol=1e-3, atol=1e-7)


def test_the_penalty_of_complex_weights_is_that_of_their_absolute_values():
    outcome = fit(variant("complex weights", settings=ONE_STEP), [L2Penalty(weight=0.05)])
    torch.manual_seed(0)
    weights = [
        parameter.detach() for parameter in PROJECTS["complex weights"].make().parameters() if parameter.ndim > 1
    ]
    assert any(weight.is_complex() for weight in weights)
    expected = 0.05 / 2 * sum(weight.abs().square().sum().item() for weight in weights)
    assert outcome.trainer.callback_metrics["penalty/l2"].item() == pytest.approx(expected, rel=1e-5)


def test_tokens_and_positions_are_no_weights_to_be_penalized():
    class Ones(PROJECTS["transformer"].make):
        def __init__(self):
            super().__init__()
            nn.init.ones_(self.network.cls_token)
            nn.init.ones_(self.network.pos_embed)

    zeros, ones = (
        fit(variant("transformer", make=make, settings=ONE_STEP), [L2Penalty(weight=0.05)]).trainer.callback_metrics
        for make in (PROJECTS["transformer"].make, Ones)
    )
    assert zeros["penalty/l2"] == ones["penalty/l2"]


# Losses.


def test_a_focal_loss_is_mixed_between_its_two_values():
    seen = []

    class Sees(Focal):
        def __init__(self):
            super().__init__()
            self.network = nn.Linear(6, 3)

        def training_step(self, batch, batch_idx):
            seen.append(batch[0].detach().clone())
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    project = variant("focal loss", make=Sees, settings=ONE_STEP)
    outcome = fit(project, [BatchMixing(Mixup(alpha=1.0), seed=1)])
    inputs, targets = features()[:BATCH_SIZE], labels()[:BATCH_SIZE]
    others, partners = inputs.roll(1, 0), targets.roll(1)
    share = ((seen[0] - inputs) * (others - inputs)).sum() / (others - inputs).square().sum()
    assert 0 < share <= 0.5
    torch.manual_seed(0)
    network = Sees().network

    def focal(logits, of):
        losses = F.cross_entropy(logits, of, reduction="none")
        return ((1 - (-losses).exp()) ** 2 * losses).mean()

    logits = network(seen[0])
    ((1 - share) * focal(logits, targets) + share * focal(logits, partners)).backward()
    expected = network.weight - 0.1 * network.weight.grad
    torch.testing.assert_close(outcome.module.network.weight, expected, rtol=1e-5, atol=1e-6)


# Validation that calls the training step.


class ValidatesApart(ValidatesByTrainingStep):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


@pytest.mark.parametrize("name", [name for name in NAMES if not only_watches(name)])
def test_validation_by_the_training_step_is_validation(name):
    project = PROJECTS["validates by its training step"]
    ours, apart = (
        fit_or_refusal(dataclasses.replace(project, make=kind), make(name, project))
        for kind in (ValidatesByTrainingStep, ValidatesApart)
    )
    if isinstance(apart, SettingError):
        assert str(ours) == str(apart)
        return
    found, expected = ([entry for entry in outcome.logged if "val" in entry[1]] for outcome in (ours, apart))
    assert expected
    assert found == expected


# What would have no effect.


@pytest.mark.parametrize("technique", [L2Penalty(weight=10.0), Lookahead(k=2), ExponentialMovingAverage(decay=0.5)])
def test_steps_that_nobody_sees_are_said_to_be(technique):
    outcome = fit(PROJECTS["steps within an optimizer"], [technique])
    assert any(f"{type(technique).__name__} had no effect" in said for said in outcome.said)
    assert not any("had no effect" in said for said in fit(PROJECTS["scheduler by hand"], [Lookahead(k=2)]).said)


def test_a_term_that_the_modules_own_backward_drops_is_said_to_have_no_effect():
    outcome = fit(PROJECTS["gradient surgery"], [ConfidencePenalty(weight=1.0)])
    assert any("ConfidencePenalty added to the loss, but had no effect" in said for said in outcome.said)
    assert not any(
        "had no effect" in said
        for said in fit(PROJECTS["warm-up in optimizer_step"], [ConfidencePenalty(weight=1.0)]).said
    )


def test_lookahead_refuses_steps_that_lightning_does_not_announce():
    class StepsByItself(PROJECTS["scheduler by hand"].make):
        def optimizers(self, use_pl_optimizer=False):
            return super().optimizers(use_pl_optimizer=False)

    refusal = fit_or_refusal(variant("scheduler by hand", make=StepsByItself), [Lookahead(k=2)])
    assert "use_pl_optimizer must be True in self.optimizers() with Lookahead" in str(refusal)


@pytest.mark.parametrize("technique", [GeneralizationGap(verbose=False), TemperatureScaling()])
def test_a_fit_that_ends_before_its_first_validation_is_said_to(technique):
    outcome = fit(variant("plain", settings={"check_val_every_n_epoch": 5}), [technique])
    assert any(type(technique).__name__ in said and "before its first validation" in said for said in outcome.said)


# What has nothing to do, or no length, or nothing to write to.


def test_without_validation_the_gap_warns_and_watches_nothing():
    outcome = fit(PROJECTS["never validates"], [GeneralizationGap()])
    assert any("GeneralizationGap" in said and "validation" in said for said in outcome.said)
    plain = fitted_plainly("never validates")
    assert all(a.equal(b) for a, b in zip(outcome.weights, plain.weights, strict=True))


def test_batches_without_images_are_said_once_to_have_none():
    outcome = fit(PROJECTS["batch of graphs"], [BatchImages(every_n_epochs=1)])
    assert sum("BatchImages" in said for said in outcome.said) == 1


@pytest.mark.parametrize("name", ["scheduler by hand", "endless data", "iterable data"])
def test_an_average_recomputes_nothing_where_there_is_no_batch_norm(name):
    class WithoutNorms(PROJECTS[name].make):
        def __init__(self):
            super().__init__()
            self.network.norm = nn.Identity()

    project = variant(name, make=WithoutNorms)
    settings = {"start": 0} if "max_steps" not in project.settings else {"start": 0, "interval": "step"}
    outcome = fit(project, [StochasticWeightAverage(**settings)])
    assert is_finite(outcome.module)
    assert not all(a.equal(b) for a, b in zip(outcome.weights, fit(project).weights, strict=True))


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_a_schedule_ends_with_the_last_step_where_there_are_only_steps(unit):
    outcome = fit(PROJECTS["max_steps alone"], [L2Penalty(weight=0.05, schedule=StrengthSchedule(unit=unit))])
    strengths = [value for _, tag, value in outcome.logged if tag == "schedule/l2"]
    expected = [step / 7 for step in range(8)] if unit == "step" else [0.0] * 4 + [1.0] * 4
    assert strengths == pytest.approx(expected)


# Overrides that look and call super.


def test_a_module_that_looks_at_clipping_is_clipped():
    """It has no clipping of the Trainer's, so a technique may clip in its place."""
    project = variant("looks at clipping", settings={}, make=LooksAtClipping)
    clipped = fit(project, [GradientClipping(max_norm=0.01)])
    torch.manual_seed(0)
    module = LooksAtClipping()
    start = [parameter.detach().clone() for parameter in module.parameters()]
    steps = len(clipped.module.norms)
    assert steps == 8
    moved = torch.cat([(a.detach() - b).flatten() for a, b in zip(clipped.module.parameters(), start, strict=True)])
    assert 0 < moved.norm() <= 0.1 * 0.01 / (1 - 0.9) * steps * (1 + 1e-4)  # SGD with momentum 0.9


@pytest.mark.parametrize("technique", [GradientMonitor(), L2Penalty(weight=0.05)])
def test_steps_that_fetch_their_batches_are_logged_without_a_complaint(technique):
    outcome = fit(PROJECTS["step with an iterator"], [technique])
    assert any(tag.startswith(("grad/", "penalty/")) for _, tag, _ in outcome.logged)
