"""SWA against the loop that torch.optim.swa_utils is documented with."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torchmetrics.classification import MulticlassAccuracy

from lightning_reg.callbacks import ExponentialMovingAverage, FreezeBatchNorm, StochasticWeightAverage
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, by_hand, equal, fit, state, trained, val_loss
from tests.conformance.problem import BATCHES, loader, resumable_loader, scaler

EPOCHS = 5
TOLERANCE = {"rtol": 0, "atol": 1e-6}


class Scheduled(Normed):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [ExponentialLR(optimizer, 0.9)]


def torchs_loop(start=2, rate=0.02, anneal_epochs=2):
    """As torch's documentation writes it, with what it remembers of the epochs."""
    module = Normed()
    averaged, kept = AveragedModel(module), {"rates": [], "losses": []}
    optimizer = module.configure_optimizers()
    usual, late = ExponentialLR(optimizer, 0.9), SWALR(optimizer, swa_lr=rate, anneal_epochs=anneal_epochs)

    def after_epoch(module, epoch):
        kept["rates"].append(optimizer.param_groups[0]["lr"])
        if epoch >= start:
            averaged.update_parameters(module)
            late.step()
        else:
            usual.step()
        if epoch >= start:
            measured = copy.deepcopy(averaged)
            update_bn(loader(), measured)
            kept["losses"].append(val_loss(measured))

    by_hand(epochs=EPOCHS, after_epoch=after_epoch, module=module, optimizer=optimizer)
    update_bn(loader(), averaged)
    return averaged.module, kept


class Rates(Callback):
    """The rate of every step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def swa(**settings):
    return StochasticWeightAverage(**{"start": 2, "lr": 0.02, "anneal_epochs": 2, **settings})


def test_equals_torchs_loop():
    rates = Rates()
    module, trainer = fit(swa(), rates, module=Scheduled(), max_epochs=EPOCHS)
    expected, kept = torchs_loop()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, **TOLERANCE)
    assert rates.rates[::BATCHES] == pytest.approx(kept["rates"], rel=1e-6)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(kept["losses"][-1], abs=1e-6)


class Thaws(Callback):
    """Trains the first layer from epoch 2 on, at a rate of its own, and remembers the rates of both groups."""

    def __init__(self):
        self.rates = []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            trainer.optimizers[0].add_param_group({"params": pl_module.net[0].parameters(), "lr": 0.5})

    def on_train_epoch_end(self, trainer, pl_module):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def test_a_group_that_is_added_later_anneals_with_the_others():
    class Head(Normed):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[3].parameters(), lr=0.1)

    thaws = Thaws()
    fit(swa(start=1, lr=0.3, anneal_epochs=4, annealing="linear"), thaws, module=Head(), max_epochs=6)
    assert [rates[0] for rates in thaws.rates] == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.25, 0.3])
    assert [rates[1] for rates in thaws.rates[2:]] == pytest.approx([0.45, 0.4, 0.35, 0.3])


def test_start_as_a_share_of_the_epochs():
    one, _ = fit(swa(start=0.4), max_epochs=EPOCHS)
    other, _ = fit(swa(start=2), max_epochs=EPOCHS)
    assert equal(state(one), state(other))


@pytest.mark.parametrize("epochs", [-1, 1_000])
def test_a_number_of_steps_is_a_length_too(epochs):
    average = swa(start=0.4)
    one, _ = fit(average, max_epochs=epochs, max_steps=EPOCHS * BATCHES)
    other, _ = fit(swa(start=2), max_epochs=EPOCHS)
    assert average.updates == 3
    assert equal(state(one), state(other))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_statistics_are_recomputed_under_autocast(precision):
    """What BatchNorm's inputs are in that precision, for the averaged weights."""
    plugins = [MixedPrecision("16-mixed", "cpu", scaler())] if precision == "16-mixed" else []
    module, _ = fit(swa(), max_epochs=EPOCHS, plugins=plugins, precision=None if plugins else precision)
    dtype = torch.float16 if plugins else torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, cache_enabled=False):
        inputs = [module.net[0](inputs).float() for inputs, _ in loader()]
    mean = torch.stack([entry.mean(0) for entry in inputs]).mean(0)
    variance = torch.stack([entry.var(0) for entry in inputs]).mean(0)
    torch.testing.assert_close(module.net[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.net[1].running_var, variance, rtol=1e-4, atol=1e-5)


def test_a_step_that_the_scaler_skips_is_no_snapshot():
    class Overflows(Normed):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * torch.inf if batch_idx == 1 else loss

    average = swa(interval="step", start=0, buffers="copy")
    fit(average, module=Overflows(), max_epochs=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler())])
    assert average.updates == BATCHES - 1


@pytest.mark.parametrize("settings", [{}, {"interval": "step", "every_n": 4}, {"lr_low": 0.001, "every_n": 2}])
@pytest.mark.parametrize("step", [5, 13, 18, 24, 27])
def test_resumed_anywhere_is_uninterrupted(settings, step, tmp_path):
    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        module, _ = fit(
            swa(**settings),
            saves,
            module=Scheduled(),
            max_epochs=EPOCHS,
            train=resumable_loader,
            enable_checkpointing=True,
            **how,
        )
        return state(module)

    whole = run()
    (tmp_path / f"step={step}.ckpt").rename(tmp_path / "start.ckpt")
    assert equal(run(ckpt_path=tmp_path / "start.ckpt"), whole)


def snapshots(*, start, end=EPOCHS, every=1):
    """The mean of the weights at the ends of some steps, counted from 0."""
    kept = []

    def after_step(module, step):
        within = step - start * BATCHES
        if within >= 0 and step < end * BATCHES and (within + 1) % every == 0:
            kept.append([parameter.detach().clone() for parameter in module.parameters()])

    by_hand(epochs=EPOCHS, after_step=after_step)
    return [torch.stack(values).mean(0) for values in zip(*kept, strict=True)], len(kept)


@pytest.mark.parametrize(
    ("settings", "by_steps"),
    [
        ({"every_n": 1}, {"every": BATCHES}),
        ({"every_n": 2, "start": 1}, {"every": 2 * BATCHES, "start": 1}),
        ({"end": 4}, {"every": BATCHES, "end": 4}),
        ({"end": 0.8}, {"every": BATCHES, "end": 4}),
        ({"interval": "step", "every_n": 4}, {"every": 4}),
    ],
)
def test_snapshots_weigh_the_same_and_the_first_counts_once(settings, by_steps):
    average = swa(lr=None, **settings)
    module, _ = fit(average, max_epochs=EPOCHS)
    expected, count = snapshots(**{"start": 2, **by_steps})
    torch.testing.assert_close(list(module.parameters()), expected, **TOLERANCE)
    assert average.updates == count


def test_cycles_end_with_a_snapshot():
    rates = Rates()
    fit(swa(interval="step", every_n=4, lr_low=0.004), rates, max_epochs=EPOCHS)
    cycle = [0.016, 0.012, 0.008, 0.004]
    assert rates.rates == pytest.approx([0.1] * 2 * BATCHES + (cycle * BATCHES)[: 3 * BATCHES])
    rates = Rates()
    fit(swa(every_n=1, lr_low=0.0), rates, max_epochs=EPOCHS)
    assert rates.rates[-BATCHES:] == pytest.approx([0.02 * (1 - (step + 1) / BATCHES) for step in range(BATCHES)])


def test_an_epoch_that_is_cut_short_has_a_snapshot_too():
    average = swa(start=0)
    fit(average, max_epochs=-1, max_steps=BATCHES + 2)
    assert average.updates == 2


def test_trained_weights_go_on_as_if_nobody_averaged():
    without, _ = fit(max_epochs=EPOCHS)
    average = swa(lr=None, start=0)
    fit(average, max_epochs=EPOCHS, num_sanity_val_steps=0)
    held = trained(average)
    assert all(torch.equal(held[name], value) for name, value in without.state_dict().items() if name in held)


class Counting(Normed):
    """Has what a pass over the training data must not touch: a metric, logs, dropout, the streams."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.net.insert(3, nn.Dropout(0.5))
        self.passes = 0

    def training_step(self, batch, batch_idx):
        self.passes += 1
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        return F.cross_entropy(logits, batch[1])


def test_recomputation_goes_unnoticed():
    results = []
    for buffers in ("copy", "recompute"):
        module, average = Counting(), swa(lr=None, start=0, buffers=buffers)
        torch.manual_seed(3)
        # In the middle of epochs, too: the metric has counted half of them.
        _, trainer = fit(average, module=module, max_epochs=2, val_check_interval=3, num_sanity_val_steps=0)
        results.append((trainer.callback_metrics["train_accuracy"], torch.get_rng_state(), list(module.parameters())))
        assert module.passes == 2 * BATCHES
        assert module.net[1].momentum == 0.1
    (accuracy, stream, weights), (accuracy_too, stream_too, weights_too) = results
    assert accuracy == accuracy_too
    assert torch.equal(stream, stream_too)
    assert all(torch.equal(*values) for values in zip(weights, weights_too, strict=True))


@pytest.mark.slow
def test_statistics_are_those_of_all_processes(tmp_path):
    command = [sys.executable, "-m", "tests.callbacks.averaged_in_two_processes", str(tmp_path / "state.pt")]
    subprocess.run(command, check=True, timeout=100, cwd=Path(__file__).parents[2])
    saved, logged = torch.load(tmp_path / "state.pt")
    module = Normed()
    module.load_state_dict(saved)
    halves = [half for inputs, _ in loader() for half in (inputs[::2], inputs[1::2])]  # a process's batches
    with torch.no_grad():
        inputs = [module.net[0](half) for half in halves]
    norm = module.net[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([entry.mean(0) for entry in inputs]).mean(0), **TOLERANCE)
    torch.testing.assert_close(norm.running_var, torch.stack([entry.var(0) for entry in inputs]).mean(0), **TOLERANCE)
    assert logged["val_loss"] == pytest.approx(val_loss(module), abs=1e-6)
    assert "ema/val_loss" in logged


def test_frozen_statistics_stay():
    module, _ = fit(swa(lr=None, start=0), FreezeBatchNorm())
    assert torch.equal(module.net[1].running_mean, torch.zeros(12))


def test_beside_a_moving_average_the_second_only_reports():
    alone, first = fit(swa(lr=None), max_epochs=EPOCHS)
    module, trainer = fit(swa(lr=None), ExponentialMovingAverage(decay=0.8), max_epochs=EPOCHS)
    _, second = fit(ExponentialMovingAverage(decay=0.8), max_epochs=EPOCHS)
    assert equal(state(module), state(alone))
    assert trainer.callback_metrics["val_loss"] == first.callback_metrics["val_loss"]
    assert trainer.callback_metrics["ema/val_loss"] == second.callback_metrics["val_loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 1.5}, r"start must be in \[0, 1\], but is 1.5"),
        ({"start": -1}, "start must be a whole number of at least 0, but is -1"),
        ({"end": -0.1}, r"end must be in \[0, 1\], but is -0.1"),
        ({"interval": "batch"}, "interval must be one of epoch, step, but is 'batch'"),
        ({"every_n": 0}, "every_n must be a whole number of at least 1, but is 0"),
        ({"lr": 0.0}, r"lr must be in \(0, ∞\), but is 0.0"),
        ({"lr_low": 0.1}, "lr must be given with lr_low"),
        ({"lr": 0.1, "lr_low": 0.2}, r"lr_low must be in \[0, 0.1\], but is 0.2"),
        ({"anneal_epochs": -1}, "anneal_epochs must be a whole number of at least 0, but is -1"),
        ({"annealing": "cos"}, "annealing must be one of linear, cosine, but is 'cos'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        StochasticWeightAverage(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"start": 3},
            "start must be before the planned end of training, epoch 3, or averaging never starts, but is 3",
        ),
        ({"start": 1.0}, "start must be before the planned end of training, epoch 3"),
        ({"start": 2, "every_n": 2}, "every_n must leave a snapshot between epochs 2 and 3"),
        ({"start": 2, "end": 2}, "end must be after start, which is epoch 2, but is 2"),
    ],
)
def test_averaging_that_never_starts_is_refused_before_the_first_step(settings, message):
    module = Normed()
    before = state(module)
    with pytest.raises(SettingError, match=message):
        fit(StochasticWeightAverage(**settings), module=module)
    assert equal(state(module), before)


def test_a_share_of_endless_training_is_refused():
    with pytest.raises(SettingError, match="start must be an epoch where nobody knows how many training has"):
        fit(StochasticWeightAverage(), max_epochs=-1)
