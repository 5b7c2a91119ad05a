"""Whose weights are restored, and when training stops, in the ways that people train."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_reg.callbacks import BestWeightsEarlyStopping
from lightning_reg.callbacks.run.snapshot import WeightSnapshot
from lightning_reg.settings import MonitorError, SettingError
from tests.conftest import REPOSITORY
from tests.helpers import quiet_trainer

NAN = float("nan")


class Scripted(LightningModule):
    """Its weight counts steps; its validation losses are given, one a validation, and so is another metric."""

    def __init__(self, losses, others=()):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.losses = losses
        self.others = others
        self.measured = []  # weights that each validation saw

    def training_step(self, batch, batch_idx):
        self.log("train_loss", self.weight.detach() * 0 + 5 - self.current_epoch, on_step=False, on_epoch=True)
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.tensor(self.losses[len(self.measured)]))
        if self.others:
            self.log("other", torch.tensor(self.others[len(self.measured)]))
        self.measured.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(losses, *callbacks, others=(), module=None, steps=1, ckpt_path=None, **settings):
    module = module or Scripted(losses, others)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {"max_epochs": len(losses), "num_sanity_val_steps": 0, "enable_checkpointing": saves}
    trainer = quiet_trainer(*callbacks, **{**defaults, **settings})
    trainer.fit(module, torch.zeros(steps, 1), torch.zeros(1, 1), ckpt_path=ckpt_path)
    return module, trainer


def ema():
    return EMAWeightAveraging(decay=0.5)


class OurKind(Callback):
    """Averages as a callback of ours does: it says so, and puts the average where checkpoints look."""

    averages_weights = True

    def __init__(self):
        self.average = torch.zeros(())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.average.lerp_(pl_module.weight.detach(), 0.5)

    def on_validation_start(self, trainer, pl_module):
        self._exchange(pl_module)

    def on_validation_end(self, trainer, pl_module):
        self._exchange(pl_module)

    def on_train_end(self, trainer, pl_module):
        self._exchange(pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["state_dict"]["weight"] = self.average

    def _exchange(self, pl_module):
        kept = pl_module.weight.detach().clone()
        pl_module.weight.data.copy_(self.average)
        with torch.inference_mode(False):
            self.average = kept.clone()


@pytest.mark.parametrize("ema_first", [True, False], ids=["ema first", "stopping first"])
@pytest.mark.parametrize("make", [ema, WeightAveraging, OurKind], ids=["ema", "swa", "ours"])
def test_average_that_was_measured_is_restored(make, ema_first, tmp_path):
    losses = [3.0, 1.0, 2.0, 2.5]
    stopping, averaging = BestWeightsEarlyStopping("val_loss", patience=9), make()
    pair = (averaging, stopping) if ema_first else (stopping, averaging)
    module, trainer = fit(losses, *pair, ModelCheckpoint(tmp_path, "best", monitor="val_loss"), steps=3)
    assert module.weight.item() == module.measured[1] != module.measured[-1]
    assert torch.load(tmp_path / "best.ckpt")["state_dict"]["weight"].item() == module.weight.item()
    if isinstance(averaging, WeightAveraging):
        trainer.save_checkpoint(tmp_path / "after.ckpt")
        assert torch.load(tmp_path / "after.ckpt")["state_dict"]["weight"].item() == module.weight.item()


def test_stops_after_an_average_of_its_own_at_the_threshold_and_after_nan():
    for losses, settings in (([3.0, 0.1, 2.0], {"stopping_threshold": 0.5}), ([3.0, 1.0, NAN], {})):
        stopping = BestWeightsEarlyStopping("val_loss", **settings)
        module, _ = fit(losses, stopping, ema(), steps=2)
        assert module.weight.item() == module.measured[1]
        assert stopping.best_epoch == 1


def test_lightnings_average_at_the_end_is_replaced_and_that_is_said():
    stopping = BestWeightsEarlyStopping("val_loss", patience=9)
    swa = StochasticWeightAveraging(swa_lrs=1.0, swa_epoch_start=1)
    with pytest.warns(
        UserWarning, match="StochasticWeightAveraging makes its average at the end and never measures it"
    ):
        module, _ = fit([3.0, 2.0, 1.0, 4.0], swa, stopping)
    assert module.weight.item() == module.measured[2]


@pytest.mark.parametrize(
    ("settings", "losses", "best"),
    [
        ({"val_check_interval": 0.5}, [4.0, 3.0, 1.0, 2.0, 2.5, 2.6], 2),
        ({"val_check_interval": 0.25}, [4.0, 3.0, 1.0, 2.0, 2.5, 2.6, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0], 2),
        ({"val_check_interval": 3}, [4.0, 1.0, 2.0], 1),  # of 4 batches: the fourth comes after validation
        ({"check_val_every_n_epoch": 2, "max_epochs": 6}, [2.0, 1.0, 3.0], 1),
        ({"check_val_every_n_epoch": None, "val_check_interval": 5, "max_epochs": 4}, [2.0, 1.0, 3.0], 1),
        ({"val_check_interval": timedelta(microseconds=1)}, [4.0, 3.0, 1.0, *[2.0] * 9], 2),
    ],
    ids=["twice", "four times", "before the end", "every second epoch", "by batches", "by time"],
)
@pytest.mark.parametrize("at_train_end", [None, True])
def test_weights_are_those_that_were_measured(settings, losses, best, at_train_end):
    if at_train_end and "check_val_every_n_epoch" in settings:
        at_train_end = False
    stopping = BestWeightsEarlyStopping("val_loss", patience=99, check_on_train_epoch_end=at_train_end)
    module, _ = fit(losses, stopping, steps=4, **{"max_epochs": 3, **settings})
    assert len(module.measured) == len(losses)
    assert module.weight.item() == module.measured[best]


def test_training_metric_is_looked_at_when_the_epoch_ends():
    stopping = BestWeightsEarlyStopping("train_loss", patience=1, mode="max", check_on_train_epoch_end=True)
    module, trainer = fit([1.0] * 4, stopping, steps=2)
    assert trainer.current_epoch == 2
    assert module.weight.item() == 2


def test_nothing_is_checked_before_the_start():
    stopping = BestWeightsEarlyStopping("val_loss", patience=2, start_from_epoch=3)
    module, trainer = fit([0.1, 5.0, 5.0, 4.0, 3.0, 3.5, 3.5, 1.0], stopping)
    assert trainer.current_epoch == 7
    assert stopping.best_epoch == 4
    assert module.weight.item() == 5


@pytest.mark.parametrize(
    ("losses", "mode", "epochs", "best"),
    [
        ([5.0, 4.0, 3.0, 2.0], "min", 3, 3),  # better each time, but never below 1
        ([5.0, 0.5, 4.0, 4.0, 4.0, 0.1], "min", 5, 2),  # beaten once: patience starts there
        ([0.1, 0.9, 1.5, 1.6, 1.7], "max", 5, 5),
    ],
)
def test_improvement_that_stays_behind_the_baseline_resets_no_patience(losses, mode, epochs, best):
    stopping = BestWeightsEarlyStopping("val_loss", mode=mode, patience=3, baseline=1.0)
    module, trainer = fit(losses, stopping)
    assert trainer.current_epoch == epochs
    assert module.weight.item() == best
    if epochs == 3:
        assert stopping.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED
        assert "did not beat the baseline 1.0 in the last 3 records" in stopping.stopping_reason_message


@pytest.mark.parametrize(
    ("stalled", "epochs", "message"),
    [
        ("any", 4, "Monitored metric other did not improve in the last 2 records. Best score: 0.900."),
        ("all", 6, "Monitored metrics val_loss, other did not improve in the last 2 records."),
    ],
)
def test_several_metrics(stalled, epochs, message, tmp_path):
    losses = [5.0, 4.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    others = [0.5, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]

    def stopping():
        return BestWeightsEarlyStopping("val_loss", patience=2, also={"other": "max"}, stalled=stalled)

    whole = stopping()
    module, trainer = fit(losses, whole, others=others)
    assert trainer.current_epoch == epochs
    assert message in whole.stopping_reason_message
    assert module.weight.item() == 4
    # Interrupted and resumed it stops where it would have.
    fit(losses, stopping(), ModelCheckpoint(tmp_path, "last"), others=others, max_epochs=3)
    resumed = Scripted(losses[3:], others[3:])
    kept = ModelCheckpoint(tmp_path, "last")
    _, trainer = fit(losses, stopping(), kept, module=resumed, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.current_epoch == epochs


def test_further_metric_that_improves_keeps_training_going():
    stopping = BestWeightsEarlyStopping("val_loss", patience=1, also={"other": "max"})
    module, trainer = fit([1.0, 2.0, 2.0, 2.0], stopping, others=[0.1, 0.2, 0.3, 0.4])
    assert trainer.current_epoch == 4
    assert module.weight.item() == 1


def test_decision_that_had_to_wait_is_taken_back_when_the_metric_improves():
    losses = [3.0, 4.0, 4.0, 1.0, 0.9, 0.8, 0.7]
    ours, stock = BestWeightsEarlyStopping("val_loss", patience=2), EarlyStopping("val_loss", patience=2)
    assert fit(losses, ours, min_epochs=4)[1].current_epoch == 7
    assert ours.stopping_reason == EarlyStoppingReason.NOT_STOPPED
    assert ours.stopping_reason_message is None
    assert fit(losses, stock, min_epochs=4)[1].current_epoch == 4


@pytest.mark.slow
def test_in_the_other_package_it_stops_and_takes_a_decision_back():
    """In a process of its own: with both packages, short names of classes are ambiguous."""
    pytest.importorskip("pytorch_lightning")
    script = """
import torch
import pytorch_lightning as pl
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from lightning_reg.pytorch_lightning import BestWeightsEarlyStopping

class Scripted(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.losses = iter([3.0, 4.0, 4.0, 1.0, 2.0, 2.0, 2.0, 2.0])
        self.others = iter([1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    def training_step(self, batch, batch_idx):
        return -self.weight
    def validation_step(self, batch, batch_idx):
        self.log_dict({"val_loss": torch.tensor(next(self.losses)), "other": torch.tensor(next(self.others))})
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

def fit(**how):
    stopping = BestWeightsEarlyStopping("val_loss", patience=2, **how)
    beside = BestWeightsEarlyStopping("other", mode="max", patience=9)  # whose state has a key of its own
    off = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[stopping, beside], min_epochs=4, max_epochs=8, num_sanity_val_steps=0, **off
    )
    trainer.fit(Scripted(), [torch.zeros(1)], [torch.zeros(1)])
    assert isinstance(stopping.stopping_reason, EarlyStoppingReason)  # of the package that is used
    print(trainer.current_epoch, stopping.best_epoch, stopping.stopping_reason.name)

fit()
fit(also={"other": "max"})
"""
    run = subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=120, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    # What is decided in epoch 2 has to wait, and is taken back in epoch 3.
    assert run.stdout.splitlines() == ["6 3 PATIENCE_EXHAUSTED", "8 3 NOT_STOPPED"]


@pytest.mark.parametrize("limits", [{"min_epochs": 5}, {"min_steps": 9}], ids=str)
def test_decision_that_still_holds_stops_at_the_minimum_as_lightnings_does(limits):
    losses = [3.0, *[4.0] * 9]
    runs = []
    for kind in (BestWeightsEarlyStopping, EarlyStopping):
        _, trainer = fit(losses, kind("val_loss", patience=2), steps=2, **limits)
        runs.append((trainer.global_step, trainer.current_epoch))
    assert runs[0] == runs[1]


def test_decision_of_another_callback_is_not_taken_back():
    stock = EarlyStopping("other", patience=2)
    stopping = BestWeightsEarlyStopping("val_loss", patience=2)
    _, trainer = fit([3.0, 4.0, 4.0, 1.0, 0.9, 0.8], stopping, stock, others=[1.0] * 6, min_epochs=4)
    assert trainer.current_epoch == 4


def test_without_validation_it_says_that_it_is_idle_and_lets_training_go_on():
    stopping = BestWeightsEarlyStopping("val_loss")
    with pytest.warns(UserWarning, match="val_loss isn't logged, and limit_val_batches is 0") as warned:
        module, trainer = fit([1.0, 1.0], stopping, limit_val_batches=0)
    assert sum("limit_val_batches" in str(warning.message) for warning in warned) == 1
    assert trainer.current_epoch == 2
    assert module.weight.item() == 2


@pytest.mark.parametrize("average", [False, True])
def test_run_resumed_from_its_best_needs_no_checkpoint_that_went_by_the_metric(tmp_path, average):
    losses = [3.0, 1.0, 2.0, 2.5]

    def callbacks():
        averaging = [ema()] if average else []
        return BestWeightsEarlyStopping("val_loss", patience=9), *averaging, ModelCheckpoint(tmp_path, "last")

    first, _ = fit(losses, *callbacks(), max_epochs=2, steps=2)
    resumed, stopping = Scripted(losses[2:]), callbacks()
    fit(losses, *stopping, module=resumed, ckpt_path=tmp_path / "last.ckpt", steps=2)
    assert stopping[0].best_epoch == 1
    assert resumed.weight.item() == first.measured[1]
    assert len(resumed.measured) == 2


def test_memory_of_one_copy_is_used_again_and_given_back(monkeypatch):
    """Counts the elements of what is kept, and that improving takes no second place."""
    places = []

    def spied(self, trainer, pl_module):
        take(self, trainer, pl_module)
        assert sum(tensor.numel() for tensor in self.state.values()) == 1
        places.append(self.state["weight"].data_ptr())

    take = WeightSnapshot.take
    monkeypatch.setattr(WeightSnapshot, "take", spied)
    stopping = BestWeightsEarlyStopping("val_loss")
    module, _ = fit([4.0, 3.0, 2.0, 1.0], stopping)
    assert len(places) == 4
    assert len(set(places)) == 1
    assert module.weight.data_ptr() not in places
    assert stopping.session is None  # which held the copy


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_exception_leaves_the_last_weights_and_nothing_behind(kind):
    class Failing(Scripted):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.current_epoch == 2:
                raise kind

    module = Failing([1.0, 2.0, 3.0])
    stopping = BestWeightsEarlyStopping("val_loss")
    with pytest.raises((kind, SystemExit)):
        fit([1.0, 2.0, 3.0], stopping, module=module)
    assert module.weight.item() == 3
    assert stopping.session is None  # which held the copy


def test_validation_that_fails_leaves_the_last_weights_too():
    class Failing(Scripted):
        def on_validation_epoch_end(self):
            if self.current_epoch == 1:
                raise ZeroDivisionError

    module, stopping = Failing([1.0, 2.0]), BestWeightsEarlyStopping("val_loss")
    with pytest.raises(ZeroDivisionError):
        fit([1.0, 2.0], stopping, module=module)
    assert module.weight.item() == 2
    assert stopping.session is None  # which held the copy


def test_fast_dev_run_keeps_nothing():
    stopping = BestWeightsEarlyStopping("val_loss")
    fit([1.0], stopping, fast_dev_run=True)
    assert stopping.best_epoch is None


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"patience": -1}, SettingError, "patience must be at least 0, but is -1"),
        ({"patience": "abc"}, SettingError, "patience must be at least 0, but is 'abc'"),
        ({"mode": "low"}, MisconfigurationException, "`mode` can be min, max, got low"),
        ({"min_delta": NAN}, SettingError, r"min_delta must be in \[0, ∞\), but is nan"),
        ({"stopping_threshold": NAN}, SettingError, "stopping_threshold must be in .* but is nan"),
        ({"divergence_threshold": NAN}, SettingError, "divergence_threshold must be in .* but is nan"),
        ({"also": 5}, SettingError, "also must have the mode of each metric by its name, but is 5"),
        ({"monitor": ""}, SettingError, "monitor must be the name of a metric, but is ''"),
        ({"start_from_epoch": -1}, SettingError, "start_from_epoch must be a whole number of at least 0, but is -1"),
        ({"baseline": NAN}, SettingError, "baseline must be in .* but is nan"),
        ({"also": {"b": "low"}}, SettingError, r"also\['b'\] must be one of min, max, but is 'low'"),
        ({"also": {"a": "min"}}, SettingError, "also must name metrics beside the monitor, but has 'a' again"),
        ({"stalled": "both"}, SettingError, "stalled must be one of all, any, but is 'both'"),
    ],
)
def test_bad_settings_are_refused(settings, kind, message):
    with pytest.raises(kind, match=message):
        BestWeightsEarlyStopping(**{"monitor": "a", **settings})


@pytest.mark.parametrize(
    ("stopping", "message"),
    [
        (
            lambda: BestWeightsEarlyStopping("val_los"),
            "`val_los` which is not available. .*: `train_loss`, `val_loss`|: `val_loss`, `train_loss`",
        ),
        (
            lambda: BestWeightsEarlyStopping("val_loss", also={"val_acc": "max"}),
            "also must name metrics that are logged, but 'val_acc' isn't; there are .*val_loss",
        ),
    ],
)
def test_metric_that_is_never_logged_is_named_with_those_that_are(stopping, message):
    with pytest.raises(MonitorError, match=message):
        fit([1.0], stopping())


def test_metric_that_is_not_logged_may_be_left_out_if_not_strict():
    stopping = BestWeightsEarlyStopping("val_loss", strict=False, also={"val_acc": "max"})
    assert fit([1.0, 2.0], stopping)[1].current_epoch == 2


@pytest.mark.slow
def test_processes_restore_one_average_and_stop_together(tmp_path):
    script = """
import sys, torch
torch.set_num_threads(1)
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning_reg.callbacks import BestWeightsEarlyStopping
from tests.callbacks.test_best_weights_early_stopping_ways import Scripted
from tests.conftest import REPOSITORY
from tests.helpers import quiet_trainer

class Differs(Scripted):
    def __init__(self):
        super().__init__([])

    def validation_step(self, batch, batch_idx):
        losses = [[3.0, 1.0, 2.0, 2.0], [1.0, 2.0, 3.0, 3.0]][self.global_rank]
        self.log("val_loss", torch.tensor(losses[self.current_epoch]))
        self.measured.append(self.weight.item())

    def on_fit_end(self):
        torch.save((self.weight.item(), self.measured), f"{sys.argv[1]}/{self.global_rank}")

stopping = BestWeightsEarlyStopping("val_loss", patience=3)
averaging = EMAWeightAveraging(decay=0.5)
trainer = quiet_trainer(
    stopping, averaging, devices=2, strategy="ddp_fork", max_epochs=9, num_sanity_val_steps=0
)
trainer.fit(Differs(), torch.zeros(4, 1), torch.zeros(1, 1))
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120, cwd=REPOSITORY)
    results = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    assert results[0] == results[1]
    weight, measured = results[0]
    assert len(measured) == 4  # rank 1 stops both
    assert weight == measured[1] != measured[-1]


@pytest.mark.slow
def test_sharded_weights_are_restored(tmp_path):
    script = """
import sys, torch
torch.set_num_threads(1)
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_reg.callbacks import BestWeightsEarlyStopping
from tests.conformance.sharded import Sharded
from tests.helpers import end_process, quiet_trainer

def whole(module):
    return [parameter.full_tensor().detach().clone() for parameter in module.parameters()]

class Scripted(Sharded):
    measured = ()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.tensor([3.0, 1.0, 2.0][self.current_epoch]))

    def on_validation_epoch_end(self):
        self.measured = (*self.measured, whole(self))

    val_dataloader = Sharded.train_dataloader

strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
trainer = quiet_trainer(
    BestWeightsEarlyStopping("val_loss"), devices=2, strategy=strategy, num_sanity_val_steps=0, max_epochs=3
)
module = Scripted()
trainer.fit(module)
restored = whole(module)
if trainer.is_global_zero:
    torch.save((restored, module.measured), sys.argv[1])
end_process()
"""
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(path), str(tmp_path / "weights")]
    subprocess.run(command, check=True, timeout=120, cwd=REPOSITORY, env=environment)
    restored, measured = torch.load(tmp_path / "weights")
    assert all(torch.equal(*pair) for pair in zip(restored, measured[1], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(restored, measured[2], strict=True))
