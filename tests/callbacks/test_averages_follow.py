"""Averages and Lookahead beside what happens to a module in the middle of a fit, and to the callbacks themselves."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from torch import nn
from torchmetrics import MaxMetric

from lightning_reg.callbacks import (
    ExponentialMovingAverage,
    LatestWeightAverage,
    Lookahead,
    StochasticWeightAverage,
)
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, equal, fit, state
from tests.callbacks.test_averaged_evaluation import Records
from tests.conformance.problem import BATCHES, loader, resumable_loader
from tests.helpers import quiet_trainer

TOLERANCE = {"rtol": 0, "atol": 1e-6}
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class AtBatch(Callback):
    """Does something to the module after one batch, and remembers a parameter after every one."""

    def __init__(self, batch, act, look=lambda module: module.net[0].weight):
        self.batch, self.act, self.look, self.seen, self.count = batch, act, look, [], 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.count += 1
        if self.count == self.batch:
            self.act(pl_module)
        self.seen.append(self.look(pl_module).detach().clone())


def moving_average(seen, decay):
    average = seen[0]
    for weight in seen[1:]:
        average = decay * average + (1 - decay) * weight
    return average


def assign(module):
    module.net[0].weight.data = module.net[0].weight.data * 0.5


def as_vector(module):
    parameters = list(module.net[0].parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters) * 0.5, parameters)


def load(module):
    module.load_state_dict({name: value * 0.5 for name, value in module.state_dict().items()})


def load_assigned(module):
    weights = {name: value * 0.5 for name, value in module.net[0].state_dict().items()}
    module.net[0].load_state_dict(weights, assign=True)


@pytest.mark.parametrize("act", [assign, as_vector, load, load_assigned])
@pytest.mark.parametrize("make", ["ema", "swa"])
def test_averages_are_those_of_the_weights_that_the_module_has(act, make):
    watch = AtBatch(4, act)
    average = {
        "ema": ExponentialMovingAverage(decay=0.8, warmup=False),
        "swa": StochasticWeightAverage(start=0, interval="step", buffers="copy"),
    }[make]
    module, _ = fit(watch, average)
    expected = moving_average(watch.seen, 0.8) if make == "ema" else torch.stack(watch.seen).mean(0)
    torch.testing.assert_close(module.net[0].weight.detach(), expected, **TOLERANCE)


def test_a_layer_of_another_shape_begins_anew():
    class Wider(Normed):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[0].parameters(), lr=0.1)

    def widen(module):
        module.net[3] = nn.Linear(12, 5)

    watch = AtBatch(4, widen, lambda module: module.net[3].weight)
    module, _ = fit(watch, ExponentialMovingAverage(decay=0.8, warmup=False), module=Wider())
    torch.testing.assert_close(module.net[3].weight.detach(), watch.seen[-1], **TOLERANCE)


# Lookahead


def lookahead_by_hand(make_module, act, k=2, alpha=0.5, batch=4):
    """With the same change of the module."""
    module = make_module()
    optimizer = module.configure_optimizers()
    slow = {parameter: parameter.detach().clone() for parameter in module.parameters()}
    steps = 0
    for _ in range(3):
        for inputs, labels in loader():
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), labels).backward()
            optimizer.step()
            steps += 1
            if steps % k == 0:
                with torch.no_grad():
                    for parameter in module.parameters():
                        if parameter.requires_grad:
                            slow[parameter].add_(alpha * (parameter - slow[parameter]))
                            parameter.copy_(slow[parameter])
            if steps == batch:
                act(module)
    return module


def freeze_one_and_thaw_another(module):
    module.net[0].weight.requires_grad_(False)
    module.net[3].weight.requires_grad_(True)


class HalfFrozen(Normed):
    def __init__(self):
        super().__init__()
        self.net[3].weight.requires_grad_(False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("act", [assign, as_vector, load, freeze_one_and_thaw_another])
def test_lookahead_acts_on_the_weights_that_the_module_has(act):
    make = HalfFrozen if act is freeze_one_and_thaw_another else Normed
    expected = lookahead_by_hand(make, act)
    module, _ = fit(AtBatch(4, act), Lookahead(k=2), module=make())
    torch.testing.assert_close(list(module.parameters()), list(expected.parameters()), **TOLERANCE)


def test_lookahead_leaves_a_frozen_layer_alone():
    watch = AtBatch(3, lambda module: module.net[0].weight.requires_grad_(False))
    module, _ = fit(watch, Lookahead(k=2))
    assert torch.equal(module.net[0].weight, watch.seen[2])


class TrainsFirstLayerIn(Callback):
    """Freezes a layer but in some epochs, as gradual unfreezing and freezing do."""

    def __init__(self, epochs):
        self.epochs, self.seen = epochs, []

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.net[0].requires_grad_(trainer.current_epoch in self.epochs)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(pl_module.net[0].weight.detach().double().clone())


@pytest.mark.parametrize("epochs", [(2, 3), (0, 1), (0, 3)])
@pytest.mark.parametrize(
    ("average", "of_seen"),
    [
        (ExponentialMovingAverage(decay=0.9, warmup=False), lambda seen: moving_average(seen, 0.9)),
        (StochasticWeightAverage(start=0), lambda seen: sum(seen[BATCHES - 1 :: BATCHES]) / 4),
        (StochasticWeightAverage(start=0, interval="step"), lambda seen: sum(seen) / len(seen)),
        (LatestWeightAverage(window=9, every_n_steps=2), lambda seen: sum(seen[1::2][-9:]) / 9),
    ],
    ids=["ema", "swa by epoch", "swa by step", "lawa"],
)
def test_what_is_frozen_for_a_while_counts_with_the_value_that_it_keeps(average, of_seen, epochs):
    watch = TrainsFirstLayerIn(epochs)
    module, _ = fit(watch, average, max_epochs=4)
    torch.testing.assert_close(module.net[0].weight.double(), of_seen(watch.seen), **TOLERANCE)


class Unregistered(Normed):
    """Two parameters of the same shape that the module doesn't know."""

    def __init__(self):
        super().__init__()
        self.offsets = [nn.Parameter(torch.full((3,), value)) for value in (1.0, -1.0)]

    def forward(self, inputs):
        return self.net(inputs) + self.offsets[0] * self.offsets[1]

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), *self.offsets], lr=0.1)


def test_unregistered_parameters_have_slow_weights_of_their_own(tmp_path):
    whole, half, resumed = Unregistered(), Unregistered(), Unregistered()
    fit(Lookahead(k=4), module=whole, max_epochs=4, train=resumable_loader)
    _, trainer = fit(ahead := Lookahead(k=4), module=half, max_epochs=1, train=resumable_loader)
    slow = ahead.kept["slow"][0]
    assert len(slow) == len(list(half.parameters())) + 2
    assert not torch.equal(*[value for name, value in slow.items() if name.startswith("optimizer")])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed.offsets = [nn.Parameter(offset.detach().clone()) for offset in half.offsets]  # no checkpoint has them
    fit(Lookahead(k=4), module=resumed, max_epochs=4, train=resumable_loader, ckpt_path=tmp_path / "half.ckpt")
    assert equal(state(resumed), state(whole))
    assert all(torch.equal(*pair) for pair in zip(resumed.offsets, whole.offsets, strict=True))


# Extremes


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize(("decay", "place"), [(0.0, -1), (1.0, 0)])
def test_no_decay_is_the_last_weights_and_whole_decay_the_first(decay, place, warmup):
    watch = AtBatch(0, None)
    module, _ = fit(watch, ExponentialMovingAverage(decay=decay, warmup=warmup))
    assert torch.equal(module.net[0].weight, watch.seen[place])


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_lookahead_all_the_way_is_nothing_to_the_bit(precision):
    def infinite():
        module = Normed()
        module.net[0].weight.data[0, 0] = torch.inf
        return module

    for make in (Normed, infinite):
        without, _ = fit(module=make(), precision=precision, limit_val_batches=0)
        with_it, _ = fit(Lookahead(k=2, alpha=1.0), module=make(), precision=precision, limit_val_batches=0)
        for one, other in zip(with_it.parameters(), without.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


# A second validation


class Measures(Normed):
    def __init__(self):
        super().__init__()
        self.best, self.validations, self.history = MaxMetric(), 0, []

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.history.append(batch_idx)
        if self.logger:
            self.logger.log_metrics({"own": batch_idx}, step=len(self.history))

    def on_validation_epoch_end(self):
        self.validations += 1
        self.best.update(self.trainer.callback_metrics["val_loss"])
        self.log("best", self.best.compute())


@pytest.mark.parametrize("second", [False, True])
def test_a_second_validation_has_no_consequences(second):
    def run(*callbacks):
        records = Records()
        module, trainer = fit(*callbacks, module=Measures(), logger=records, log_every_n_steps=1)
        own = [(step, metrics["own"]) for step, metrics in records.logged if "own" in metrics]
        kept = module.history, module.validations, module.best.compute(), module.best.update_count, own
        return kept, trainer.callback_metrics

    one = ExponentialMovingAverage(decay=0.8, validate="both" if not second else "averaged")
    averages = [one, StochasticWeightAverage(start=0)] if second else [one]
    plain, _ = run(*([ExponentialMovingAverage(decay=0.8)] if second else []))
    with_it, metrics = run(*averages)
    assert with_it == plain
    assert metrics["swa/best" if second else "ema/best"] > 0


def test_what_cannot_be_copied_is_refused_in_one_sentence():
    class Holds(Normed):
        def on_fit_start(self):
            self.stream = (number for number in range(3))

    with pytest.raises(SettingError, match=r"ExponentialMovingAverage, which evaluates a copy .*generator"):
        fit(ExponentialMovingAverage(validate="both"), module=Holds())


# State


def same(one, other):
    """Whether two states are equal, their tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


MADE = {
    "ema": lambda: ExponentialMovingAverage(decay=0.8, buffers="recompute"),
    "swa": lambda: StochasticWeightAverage(start=0, interval="step"),
    "lookahead": lambda: Lookahead(k=4),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_copies_carry_settings_and_state_at_all_times(name, copied):
    made = []

    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                made.append((copied(technique), technique.saved_state()))

    technique = MADE[name]()
    made.append((copied(technique), technique.saved_state()))
    fit(Copies(), technique)
    made.append((copied(technique), technique.saved_state()))
    settings = set(inspect.signature(type(technique)).parameters)
    for other, saved in made:
        assert vars(other).keys() == settings | {"_slot"}
        assert all(getattr(other, setting) == getattr(technique, setting) for setting in settings)
        assert same(other.saved_state(), saved)
    once, again = fit(MADE[name]())[0], fit(made[1][0])[0]  # a copy begins anew, too
    assert equal(state(once), state(again))


@pytest.mark.parametrize("name", MADE)
def test_state_is_in_whatever_is_saved(name, tmp_path):
    class Fails(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 3:
                raise InterruptedError

    def saved(path):
        checkpoint = torch.load(path, weights_only=True)
        state = checkpoint["lightning_reg"][f"{type(technique).__name__}_1"]
        weights = state["slow"][0] if name == "lookahead" else state["weights"]["values"]
        return state, weights, checkpoint["state_dict"]

    technique, saves = MADE[name](), ModelCheckpoint(tmp_path / "exception", save_on_exception=True)
    module = Normed()
    with pytest.raises(InterruptedError):
        fit(technique, saves, Fails(), module=module, enable_checkpointing=True)
    (failed,) = (tmp_path / "exception").glob("*step=9.ckpt")
    state, weights, averaged = saved(failed)
    kept = technique.saved_state()
    assert all(same(state[key], kept[key]) for key in kept if key != "weights")
    if name != "lookahead":  # the trained weights beside the average, which the model gets
        assert same(weights["net.0.weight"], module.net[0].weight)
        assert same(averaged["net.0.weight"], kept["weights"]["values"]["net.0.weight"])
    saves = ModelCheckpoint(tmp_path, save_last=True)
    _, trainer = fit(technique, saves, enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    for path in (tmp_path / "last.ckpt", tmp_path / "after.ckpt"):
        assert saved(path)[1]["net.0.weight"].any()
    assert same(saved(tmp_path / "last.ckpt")[1], saved(tmp_path / "after.ckpt")[1])


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("first", [False, True])
def test_a_finder_leaves_the_fit_as_it_would_be(name, first, tmp_path):
    class Found(Normed):
        lr = 0.1

    finder = LearningRateFinder(num_training_steps=5, update_attr=False)
    callbacks = [finder, MADE[name]()] if first else [MADE[name](), finder]
    without, _ = fit(MADE[name](), module=Found())
    module = Found()
    quiet_trainer(*callbacks, max_epochs=3, enable_checkpointing=True, default_root_dir=tmp_path).fit(
        module, loader(), loader()
    )
    assert equal(state(module), state(without))


class FindsInTheMiddle(LearningRateFinder):
    """As Lightning's documentation does for finetuning."""

    def on_fit_start(self, *_):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


@pytest.mark.parametrize("name", MADE)
def test_a_finder_in_the_middle_of_a_fit_leaves_state_as_it_was(name, tmp_path):
    class Found(Normed):
        lr = 0.1

    technique, before, after = MADE[name](), [], []

    class Compares(Callback):
        def __init__(self, into):
            self.into = into

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.into.append((technique.saved_state(), state(pl_module)))

    class ComparesAgain(Compares):
        pass

    finder = FindsInTheMiddle(num_training_steps=5, update_attr=False)
    settings = {"max_epochs": 2, "enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer = quiet_trainer(Compares(before), finder, ComparesAgain(after), technique, **settings)
    trainer.fit(Found(), loader(), loader())
    assert before
    assert same(after, before)


def test_a_state_of_another_version_is_refused_in_one_sentence(tmp_path):
    _, trainer = fit(MADE["ema"](), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    checkpoint = torch.load(tmp_path / "old.ckpt", weights_only=True)
    old = {"trained": {}, "average": {}, "counters": {"updates": BATCHES}}
    checkpoint["lightning_reg"]["ExponentialMovingAverage_1"] = old
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(SettingError, match="ckpt_path must hold a state of ExponentialMovingAverage"):
        fit(MADE["ema"](), ckpt_path=tmp_path / "old.ckpt")
