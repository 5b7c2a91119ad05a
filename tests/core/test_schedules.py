import math

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_reg.callbacks import (
    BestWeightsEarlyStopping,
    ExponentialMovingAverage,
    GeneralizationGap,
    L2Penalty,
    LatestWeightAverage,
    Lookahead,
    SharpnessAwareMinimization,
)
from lightning_reg.core.lightning import planned_epochs
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_never_zero
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, loader
from tests.helpers import quiet_trainer


def factors(count, duration, **settings):
    return [pytest.approx(StrengthSchedule(**settings).factor(now, duration)) for now in range(count)]


def test_kinds():
    assert factors(6, 4, kind="linear") == [0, 0.25, 0.5, 0.75, 1, 1]
    assert factors(6, 4, kind="cosine") == [0, 0.1464466, 0.5, 0.8535534, 1, 1]
    assert factors(6, 4, kind="step", jumps=2) == [0, 0, 0.5, 0.5, 1, 1]
    assert factors(4, 0, kind="constant", begin=2, start=0.5) == [0.5, 0.5, 1, 1]
    assert factors(4, 2, kind="linear", start=3, end=1, begin=1) == [3, 3, 2, 1]
    assert factors(3, 0, kind="linear", begin=1) == [0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "linea"}, "schedule.kind must be one of .* did you mean 'linear'"),
        ({"unit": "batch"}, "schedule.unit must be one of epoch, step"),
        ({"start": -1.0}, r"schedule.start must be in \[0, ∞\)"),
        ({"end": float("nan")}, r"schedule.end must be in \[0, ∞\)"),
        ({"begin": -1}, "schedule.begin must be a whole number of at least 0"),
        ({"duration": 0}, "schedule.duration must be a whole number of at least 1"),
        ({"jumps": 0}, "schedule.jumps must be a whole number of at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        StrengthSchedule(**settings)


def test_a_bound_is_never_multiplied_by_zero():
    with pytest.raises(SettingError, match=r"schedule.start must be in \(0, ∞\)"):
        check_never_zero(StrengthSchedule())
    check_never_zero(StrengthSchedule(start=2.0))
    check_never_zero(None)


def fit(schedule, **settings):
    seen = []

    class Seen(SomebodysModule):
        def on_train_batch_end(self, *_):
            if "schedule/l2" in self.trainer.callback_metrics:  # not before the first step
                seen.append(self.trainer.callback_metrics["schedule/l2"].item())

    trainer = quiet_trainer(L2Penalty(weight=0.1, schedule=schedule), log_every_n_steps=1, **settings)
    trainer.fit(Seen(), loader(), loader())
    return seen


LATE = [
    (lambda: L2Penalty(weight=0.1, schedule=StrengthSchedule(kind="constant", begin=50)), "begin is 50", "2 epochs"),
    (lambda: L2Penalty(weight=0.1, schedule=StrengthSchedule(begin=50, duration=2)), "begin is 50", "2 epochs"),
    (lambda: ExponentialMovingAverage(start_step=99), "start_step is 99 and every_n_steps is 1", "6 steps"),
    (lambda: ExponentialMovingAverage(start_epoch=2), "start_epoch is 2", "2 epochs"),
    (
        lambda: ExponentialMovingAverage(start_epoch=1, every_n_steps=4),
        "start_epoch is 1 and every_n_steps is 4",
        "6 steps",
    ),
    (lambda: LatestWeightAverage(every_n_steps=99), "every_n_steps is 99", "6 steps"),
    (lambda: Lookahead(k=7), "k is 7", "6 steps"),
    (lambda: SharpnessAwareMinimization(interval=7), "interval is 7", "6 steps"),
    (lambda: BestWeightsEarlyStopping("val_loss", start_from_epoch=2), "start_from_epoch is 2", "2 epochs"),
    (lambda: GeneralizationGap(every_n_epochs=3), "every_n_epochs is 3", "2 epochs"),
]


@pytest.mark.parametrize(("make", "given", "end"), LATE, ids=[given for _, given, _ in LATE])
def test_what_begins_after_the_end_of_training_is_warned_of_once(make, given, end, recwarn):
    settings = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1}
    quiet_trainer(make(), **settings).fit(SomebodysModule(), loader(), loader())
    found = [str(warning.message) for warning in recwarn if "has no effect" in str(warning.message)]
    assert len(found) == 1
    assert f"has no effect: {given}, but training is planned to end after {end}" in found[0]


class KeepsHead(SomebodysModule):
    """Keeps a copy of one weight after each step."""

    def on_train_start(self):
        self.heads = [self.network.head.weight.detach().clone()]

    def on_train_batch_end(self, *_):
        self.heads.append(self.network.head.weight.detach().clone())


def heads(*callbacks):
    """The weight at the start of six steps and after each; a warning is an error."""
    module = KeepsHead()
    settings = {"max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 1}
    quiet_trainer(*callbacks, **settings).fit(module, loader(), loader())
    return module.heads


@pytest.mark.parametrize("make", [lambda: Lookahead(k=6), lambda: SharpnessAwareMinimization(interval=6)])
def test_what_acts_in_the_last_step_alone_is_not_warned_of(make):
    differ = [not torch.equal(one, other) for one, other in zip(heads(make()), heads(), strict=True)]
    assert differ == [False] * 6 + [True]


def test_an_average_that_begins_with_the_last_step_is_not_warned_of():
    average = ExponentialMovingAverage(start_epoch=1, every_n_steps=3)
    last = heads(average)[-1]
    assert average.last_result.updates == 1
    assert torch.equal(average.last_result.weights["network.head.weight"], last)


def test_factor_is_logged_and_reaches_its_end_in_the_last_epoch():
    assert fit(StrengthSchedule(), max_epochs=3, limit_train_batches=1) == [0, 0.5, 1]


def test_factor_reaches_its_end_in_the_last_step():
    expected = [pytest.approx(step / 5) for step in range(6)]
    assert fit(StrengthSchedule(unit="step")) == expected
    assert fit(StrengthSchedule(unit="step"), max_epochs=-1, max_steps=6) == expected
    assert fit(StrengthSchedule(unit="step"), max_epochs=2, accumulate_grad_batches=4)[-1] == 1


@pytest.mark.filterwarnings("ignore:.*max_epochs.*was not set")
def test_training_without_end_needs_a_duration():
    with pytest.raises(SettingError, match=r"schedule\.duration must be given in epochs"):
        fit(StrengthSchedule(), max_epochs=-1)
    assert fit(StrengthSchedule(duration=1), max_epochs=-1, max_steps=2) == [0, 0]


def test_steps_alone_are_a_length():
    assert fit(StrengthSchedule(unit="step"), max_epochs=-1, max_steps=3) == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        # Steps of an epoch of 6 batches: one of a whole window, and one of the two batches that are left.
        ({"max_epochs": -1, "max_steps": 6, "accumulate_grad_batches": 4}, [0, 0, 0.5, 0.5, 1, 1]),
        ({"max_epochs": 9, "max_steps": 12}, [0] * 6 + [1] * 6),
    ],
    ids=["a shorter window", "both lengths"],
)
def test_steps_say_how_many_epochs_there_are(settings, factors):
    seen = []

    class Seen(SomebodysModule):
        def on_before_optimizer_step(self, optimizer):
            seen.append(strength.now(self.trainer))

        def on_fit_start(self):
            nonlocal strength
            strength = ScheduledStrength(StrengthSchedule(), self.trainer)

    strength = ScheduledStrength()
    quiet_trainer(**settings).fit(Seen(), loader(), loader())
    assert seen == factors


def test_steps_say_nothing_of_epochs_of_unknown_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(list(loader().dataset))

    def epochs(**settings):
        seen = []

        class Seen(SomebodysModule):
            def on_train_start(self):
                seen.append(planned_epochs(self.trainer))

        quiet_trainer(**settings).fit(Seen(), DataLoader(Stream(), batch_size=4), loader())
        return seen

    assert epochs(max_epochs=-1, max_steps=2) == [math.inf]
    assert epochs(max_epochs=5, max_steps=2) == [5]
    assert epochs(max_epochs=5, max_steps=2, limit_train_batches=1) == [2]


def test_off_is_what_never_gets_above_zero():
    def is_off(schedule):
        return ScheduledStrength(schedule, quiet_trainer(max_epochs=3)).is_off

    assert is_off(StrengthSchedule(end=0.0))
    assert is_off(StrengthSchedule(kind="constant", start=1.0, end=0.0))
    assert not is_off(StrengthSchedule(kind="constant", start=1.0, end=0.0, begin=2))
    assert not is_off(StrengthSchedule())
    assert not is_off(None)


def test_flat_cosine_stays_for_half_the_time_and_falls_to_zero():
    schedule = StrengthSchedule(kind="flat_cosine", duration=8)
    factors = [schedule.factor(epoch, 8) for epoch in range(11)]
    assert factors[:5] == [1.0] * 5
    assert factors[5:8] == pytest.approx([(1 + math.cos(math.pi * t)) / 2 for t in (0.25, 0.5, 0.75)])
    assert factors[8:] == [0.0] * 3


def test_flat_cosine_goes_between_what_is_given():
    schedule = StrengthSchedule(kind="flat_cosine", start=0.2, end=0.6, begin=1, duration=2)
    assert [schedule.factor(epoch, 2) for epoch in range(4)] == pytest.approx([0.2, 0.2, 0.2, 0.6])
