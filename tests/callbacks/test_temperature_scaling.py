"""A temperature that is fitted on validation data and divides the last layer's weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_reg.callbacks import BestWeightsEarlyStopping, ExponentialMovingAverage, TemperatureScaling
from lightning_reg.functional.measures.calibration import best_temperature, reliability, scaled_loss
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, Textbook, loader, samples
from tests.conformance.technique import Technique
from tests.foreign.fitting import Remembers
from tests.helpers import quiet_trainer


def by_search(logits, labels):
    """Golden sections of log T up to the bounds, where the loss has one valley."""
    low, high, ratio = -math.log(100), math.log(100), (5**0.5 - 1) / 2

    def loss(place):
        return F.cross_entropy(logits.double() / torch.tensor(place).double().exp(), labels).item()

    while high - low > 1e-9:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return torch.tensor((low + high) / 2).double().exp().item()


def logits_of(model):
    inputs, labels = samples().tensors
    was_training, dtype = model.training, getattr(model, "dtype", None)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        logits = model.eval()(inputs)
    model.train(was_training)
    return logits.float(), labels


def in_this_precision(model, inputs, labels):
    """The plain loss, which is computed in the precision that validation has, too."""

    def loss_of(logits):
        model.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        return F.cross_entropy(logits, labels)

    return inputs, loss_of


def scaled_head(model):
    temperature = by_search(*logits_of(model))
    head = {id(parameter) for parameter in model.head.parameters()}
    weights = ((parameter, parameter.detach().clone()) for parameter in model.parameters())
    return [weight / temperature if id(parameter) in head else weight for parameter, weight in weights]


CONFORMANCE = {
    "TemperatureScaling": Technique(
        TemperatureScaling,
        lambda: TemperatureScaling(deploy=False),
        Textbook(mix=in_this_precision, evaluated=scaled_head),
    ),
}


def drawn(sharpness=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return sharpness * logits, labels


def test_the_temperature_is_that_of_a_search_in_float64():
    for sharpness in (0.3, 1.0, 3.0):
        logits, labels = drawn(sharpness)
        found = best_temperature(logits, labels)
        assert found == pytest.approx(by_search(logits, labels), rel=1e-6)
        assert found == pytest.approx(sharpness, rel=0.2)
        expected = F.cross_entropy(logits.double() / found, labels).item()
        assert scaled_loss(logits, labels, found) == pytest.approx(expected, rel=1e-12)


def test_the_ends_are_bounds_and_a_masked_class_adds_nothing():
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert 0.0099 < best_temperature(logits, torch.tensor([0, 1])) < 0.1  # where the loss is 0 in 64 bits
    assert best_temperature(logits / 100, torch.tensor([0, 1])) == pytest.approx(0.01, rel=1e-6)
    assert best_temperature(logits, torch.tensor([1, 0])) == pytest.approx(100, rel=1e-6)
    logits, labels = drawn()
    masked = torch.cat((logits, torch.full((len(logits), 1), -torch.inf)), 1)
    assert best_temperature(masked, labels) == pytest.approx(best_temperature(logits, labels), rel=1e-9)


def test_the_diagrams_bins_give_torchmetrics_error():
    logits, labels = drawn()
    counts, confidences, right = reliability(logits.softmax(1), labels, bins=10)
    assert counts.sum() == len(labels)
    error = (confidences - right).abs().sum() / len(labels)
    torch.testing.assert_close(error, multiclass_calibration_error(logits.softmax(1), labels, 5, n_bins=10))


def fit(module, *callbacks, **settings):
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 3, **settings})
    trainer.fit(module, loader(), loader())
    return trainer


def test_what_is_left_is_calibrated_and_predicts_the_same_classes():
    scaling, plain, scaled, logger = TemperatureScaling(), SomebodysModule(), SomebodysModule(), Remembers()
    fit(plain)
    trainer = fit(scaled, scaling, logger=logger, log_every_n_steps=1)
    before, labels = logits_of(plain.network)
    after, _ = logits_of(scaled.network)
    found = scaling.calibration
    torch.testing.assert_close(after, before / found.temperature)
    assert found.loss == pytest.approx(F.cross_entropy(before, labels).item(), rel=1e-5)
    assert found.loss_scaled == pytest.approx(F.cross_entropy(after, labels).item(), rel=1e-5)
    assert found.loss_scaled < found.loss
    assert found.error_scaled == pytest.approx(multiclass_calibration_error(after.softmax(1), labels, 3, 15).item())
    assert "calibration/reliability" in logger.writer.tags
    assert trainer.callback_metrics["calibration/loss_scaled"].item() == pytest.approx(found.loss_scaled, rel=1e-5)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(found.loss, rel=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_the_temperature_is_that_of_the_weights_that_remain(first):
    def callbacks():
        return [ExponentialMovingAverage(decay=0.9), BestWeightsEarlyStopping("calibration/loss_scaled", patience=9)]

    plain, scaled, scaling = SomebodysModule(), SomebodysModule(), TemperatureScaling()
    fit(plain, TemperatureScaling(deploy=False), *callbacks())
    fit(scaled, *([scaling, *callbacks()] if first else [*callbacks(), scaling]))
    before, labels = logits_of(plain.network)
    torch.testing.assert_close(logits_of(scaled.network)[0], before / by_search(before, labels))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_of_the_fit_is_tested_with_its_temperature(tmp_path):
    class Tested(SomebodysModule):
        def test_step(self, batch, batch_idx):
            self.validation_step(batch, batch_idx)

    saving, scaling = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True), TemperatureScaling()
    module = Tested()
    trainer = fit(module, scaling, saving, enable_checkpointing=True)
    for path in (saving.best_model_path, saving.last_model_path):
        bare = Tested()
        bare.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        before, labels = logits_of(bare.network)
        metrics = quiet_trainer(TemperatureScaling(), logger=False).test(Tested(), loader(), ckpt_path=path)[0]
        expected = F.cross_entropy(before / by_search(before, labels), labels).item()
        assert metrics["val_loss"] == pytest.approx(expected, rel=1e-4)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    metrics = quiet_trainer(TemperatureScaling(), logger=False).test(Tested(), loader(), tmp_path / "after.ckpt")[0]
    assert metrics["val_loss"] == pytest.approx(scaling.calibration.loss_scaled, rel=1e-4)


class OfNumbers(SomebodysModule):
    """Has a loss of numbers."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.network(batch[0]).square().mean())


class Doubled(SomebodysModule):
    """Adds to its logits."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.network(batch[0]) + 1e-1 * batch[0][:, :3], batch[1]))


class TwoHeads(SomebodysModule):
    """Has a loss of three classes and one of two."""

    def validation_step(self, batch, batch_idx):
        logits = self.network(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]) + F.cross_entropy(logits[:, :2], batch[1].clamp(max=1)))


class TakesIterators(SomebodysModule):
    """Fetches its validation batches by itself."""

    def validation_step(self, dataloader_iter):
        batch, *_ = next(dataloader_iter)
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]), batch_size=len(batch[1]))


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (TakesIterators, {}, "deploy must be False with TemperatureScaling where validation_step takes a dataloader"),
        (TwoHeads, {}, "cross_entropy of one head with TemperatureScaling, but calls it with 2 and 3 classes"),
        (OfNumbers, {}, "validation_step must call cross_entropy with logits and class indices"),
        (Doubled, {}, "deploy must be False with TemperatureScaling where no nn.Linear"),
        (SomebodysModule, {"limit_val_batches": 0}, "limit_val_batches must be above 0"),
    ],
)
def test_what_has_no_temperature_is_refused_before_training(module, settings, message):
    module = module()
    weight = module.network.head.weight.detach().clone()
    with pytest.raises(SettingError, match=message):
        fit(module, TemperatureScaling(), num_sanity_val_steps=2, **settings)
    assert module.network.head.weight.equal(weight)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_batches_that_a_step_fetches_are_measured():
    scaling, fetches = TemperatureScaling(deploy=False), TemperatureScaling(deploy=False)
    fit(SomebodysModule(), scaling)
    fit(TakesIterators(), fetches)
    assert fetches.calibration == scaling.calibration


def test_training_that_calls_the_validation_step_adds_no_logits():
    class Shared(SomebodysModule):
        def validation_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.network(batch[0]), batch[1])
            self.log("val_loss", loss)
            return loss

        def training_step(self, batch, batch_idx):
            return self.validation_step(batch, batch_idx)

    held = []

    class Counts(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            held.append(len(scaling.session.logits._seen))

    scaling = TemperatureScaling()
    fit(Shared(), scaling, Counts())
    assert set(held) == {0}


def test_a_head_that_is_not_the_last_layer_is_found():
    def further(network):
        network.register_module("unused_head", nn.Linear(12, 3))

    scaling, module = TemperatureScaling(), SomebodysModule(prepare=further)
    before = module.network.unused_head.weight.detach().clone()
    fit(module, scaling)
    assert module.network.unused_head.weight.equal(before)


def test_bins_must_be_some():
    with pytest.raises(SettingError, match="bins must be"):
        TemperatureScaling(bins=0)
