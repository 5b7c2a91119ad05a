"""An average, mixing, a penalty and early stopping in one run: the weights that remain are those that were best."""

import itertools
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from lightning_reg.callbacks import (
    BatchMixing,
    BestWeightsEarlyStopping,
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientClipping,
    LatestWeightAverage,
    StochasticWeightAverage,
)
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.conformance.problem import BATCHES, SomebodysModule, loader
from tests.helpers import quiet_trainer

AVERAGES = {
    "ema": lambda: ExponentialMovingAverage(decay=0.8),
    "swa": lambda: StochasticWeightAverage(start=0.3, lr=0.1),
}


class Overfits(SomebodysModule):
    """Its validation loss is lowest in an epoch that is neither the first nor the last."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("val_loss", loss + abs(self.current_epoch - 3))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("average", AVERAGES)
def test_whatever_the_order_the_average_of_the_best_epoch_remains(average, order, tmp_path):
    saves = ModelCheckpoint(tmp_path, "best", monitor="val_loss", enable_version_counter=False)
    stops = BestWeightsEarlyStopping("val_loss", patience=2)
    three = [AVERAGES[average](), stops, saves]
    others = [ElasticNetPenalty(l1=1e-3, l2=1e-3), GradientClipping(max_norm=0.5), BatchMixing(Mixup())]
    module = Overfits()
    trainer = quiet_trainer(*(three[index] for index in order), *others, max_epochs=8, enable_checkpointing=True)
    trainer.fit(module, loader(), loader())
    assert trainer.current_epoch == 6  # the best, two without improvement, and the next one's number
    assert stops.best_epoch == 3
    best = torch.load(tmp_path / "best.ckpt", weights_only=False)["state_dict"]
    assert all(torch.equal(weight, best[name]) for name, weight in module.state_dict().items())
    (measured,) = trainer.validate(module, loader(), verbose=False)
    # Of three batches of the same size the loss is a mean, in which sums are made in another order.
    assert measured["val_loss"] - abs(trainer.current_epoch - 3) == pytest.approx(
        stops.kept["best_value"].item(), abs=1e-5
    )


# An average that hasn't begun when training ends.

LATE = {
    "swa": (StochasticWeightAverage, "start is 0.75, every_n is 1"),
    "swa in steps": (lambda: StochasticWeightAverage(interval="step"), "start is 0.75, every_n is 1"),
    "ema by epoch": (lambda: ExponentialMovingAverage(start_epoch=7), "start_epoch is 7, start_step is 0, every_n_ste"),
    "ema by step": (lambda: ExponentialMovingAverage(start_step=20), "start_epoch is 0, start_step is 20, every_n_ste"),
    "lawa": (lambda: LatestWeightAverage(every_n_steps=20), "every_n_steps is 20"),
}


class Stops(Callback):
    """Somebody's own way to stop after two epochs."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


class Unsized(IterableDataset):
    """Batches whose number nobody knows."""

    def __iter__(self):
        yield from loader()


def effects(*callbacks, train=loader, **settings):
    """What was warned of averages without an effect."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quiet_trainer(*callbacks, **settings).fit(SomebodysModule(), train())
    return [str(warning.message) for warning in told if "effect" in str(warning.message)]


@pytest.mark.parametrize("late", LATE)
def test_an_average_that_has_not_begun_when_training_stops_is_warned_of(late):
    make, given = LATE[late]
    (said,) = effects(make(), Stops(), max_epochs=10)
    assert f"{type(make()).__name__} has had no effect: {given}" in said
    assert said.endswith(f"but training ended at epoch 2, step {2 * BATCHES}")


def test_each_average_without_effect_is_warned_of_by_name():
    said = effects(LATE["swa"][0](), LATE["ema by epoch"][0](), Stops(), max_epochs=10)
    assert [line.split()[0] for line in said] == ["StochasticWeightAverage", "ExponentialMovingAverage"]


def test_the_planned_epochs_of_unsized_data_are_named_where_the_steps_end_before():
    train = lambda: DataLoader(Unsized(), batch_size=None)  # noqa: E731
    (said,) = effects(StochasticWeightAverage(), train=train, max_epochs=100, max_steps=2 * BATCHES)
    assert f"start is 0.75, every_n is 1, but training ended at epoch 2, step {2 * BATCHES}" in said


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ExponentialMovingAverage(half_life=0.1, half_life_unit="run"), "must be 'step', or 'epoch' with data"),
        (lambda: ExponentialMovingAverage(half_life=1.0, half_life_unit="epoch"), "where the training data have no"),
        (LatestWeightAverage, "the training data have no length"),
    ],
    ids=["ema by run", "ema by epoch", "lawa"],
)
def test_unsized_data_are_no_training_without_an_end(make, said):
    with pytest.raises(SettingError, match=said):
        effects(make(), train=lambda: DataLoader(Unsized(), batch_size=None), max_epochs=2)


def test_an_average_without_effect_is_warned_of_once():
    (said,) = effects(ExponentialMovingAverage(start_step=1000), max_epochs=2)
    assert "training is planned to end after" in said


def test_an_average_that_has_begun_or_was_only_tried_out_is_not_warned_of():
    assert not effects(ExponentialMovingAverage(start_epoch=1), Stops(), max_epochs=10)
    assert not effects(ExponentialMovingAverage(start_epoch=7), fast_dev_run=2)
    assert not effects(LatestWeightAverage(every_n_steps=20), fast_dev_run=2)


def test_an_exception_before_an_average_begins_is_not_followed_by_a_warning():
    class Fails(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise RuntimeError("somebody's")

    trainer = quiet_trainer(ExponentialMovingAverage(start_epoch=7), Fails(), max_epochs=10)
    with pytest.raises(RuntimeError, match="somebody's"):  # warnings are errors, too
        trainer.fit(SomebodysModule(), loader(), loader())
