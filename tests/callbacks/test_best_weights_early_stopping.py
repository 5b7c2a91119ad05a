import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_reg.callbacks import BestWeightsEarlyStopping
from lightning_reg.settings import SettingError
from tests.conftest import REPOSITORY
from tests.helpers import quiet_trainer

NAN = float("nan")


class Scripted(LightningModule):
    """Its weight is the number of epochs it was trained, and its validation losses are given."""

    def __init__(self, losses):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.losses = losses

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.tensor(self.losses[self.current_epoch]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(losses, *callbacks, ckpt_path=None, module=None, **settings):
    module = module or Scripted(losses)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {"max_epochs": len(losses), "num_sanity_val_steps": 0, "enable_checkpointing": saves}
    trainer = quiet_trainer(*callbacks, **{**defaults, **settings})
    trainer.fit(module, torch.zeros(1, 1), torch.zeros(1, 1), ckpt_path=ckpt_path)
    return module.weight.item(), trainer


@pytest.mark.parametrize(
    ("losses", "patience", "best", "epochs"),
    [
        ([3.0, 1.0, 2.0, 2.0, 2.0], 2, 1, 4),  # patience runs out
        ([3.0, 2.0, 1.0], 5, 2, 3),  # training ends by itself at its best
        ([1.0, 2.0, 3.0], 5, 0, 3),  # ... and at its worst
        ([3.0, 1.0, NAN, 0.5], 5, 1, 3),  # stopped by a NaN
        ([2.0, 1.0, 1.0, 1.0], 2, 1, 4),  # of equals the first
    ],
)
def test_weights_are_those_of_the_best_epoch(losses, patience, best, epochs):
    stopping = BestWeightsEarlyStopping("val_loss", patience=patience)
    weight, trainer = fit(losses, stopping)
    assert stopping.best_epoch == best
    assert weight == best + 1
    assert trainer.current_epoch == epochs


class Recorded(torch.Tensor):
    """Keeps a record of where its values come from, as medical images do."""

    def __deepcopy__(self, memo):
        return self.clone()


def test_a_checkpoint_holds_data_alone_whatever_kind_of_tensor_is_logged(tmp_path):
    class Records(Scripted):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", torch.tensor(self.losses[self.current_epoch]).as_subclass(Recorded))

    stopping = BestWeightsEarlyStopping("val_loss", patience=2)
    saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    weight, _ = fit([3.0, 1.0, 2.0], stopping, saves, module=Records([3.0, 1.0, 2.0]))
    assert weight == 2
    torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)


def averages(losses, smoothing):
    """Weighted means of all values so far, by the textbook's sum."""
    means = []
    for end in range(1, len(losses) + 1):
        weights = [smoothing ** (end - 1 - index) for index in range(end)]
        total = sum(weight * loss for weight, loss in zip(weights, losses[:end], strict=True))
        means.append(total / sum(weights))
    return means


LUCKY = [3.0, 2.0, 0.4, 2.0, 1.4, 1.2, 1.1, 1.5, 1.9, 2.1]


@pytest.mark.parametrize("at_epoch_end", [None, True, False])
def test_a_smoothed_monitor_is_not_taken_in_by_one_lucky_epoch(at_epoch_end):
    settings = {"patience": 4, "check_on_train_epoch_end": at_epoch_end}
    lucky, smooth = (BestWeightsEarlyStopping("val_loss", **settings, smoothing=beta) for beta in (0.0, 0.6))
    assert fit(LUCKY, lucky)[0] == 3
    weight, trainer = fit(LUCKY, smooth)
    expected = averages(LUCKY, 0.6)
    best = min(range(len(LUCKY)), key=expected.__getitem__)
    assert (smooth.best_epoch, weight) == (best, best + 1)
    assert smooth.best_score.item() == pytest.approx(expected[best])
    assert trainer.current_epoch == len(LUCKY)
    assert trainer.callback_metrics["val_loss_smoothed"].item() == pytest.approx(expected[-1])


def test_a_smoothed_monitor_goes_on_after_a_resume(tmp_path):
    def run(epochs, path=None):
        stopping = BestWeightsEarlyStopping("val_loss", patience=9, smoothing=0.6, restore_best_weights=False)
        saving = ModelCheckpoint(tmp_path, save_last=True)
        return fit(LUCKY, stopping, saving, max_epochs=epochs, ckpt_path=path)[1].callback_metrics

    run(4)
    resumed = run(8, tmp_path / "last.ckpt")["val_loss_smoothed"]
    assert resumed.item() == pytest.approx(averages(LUCKY, 0.6)[7])


def test_a_smoothed_monitor_stops_at_a_nan():
    stopping = BestWeightsEarlyStopping("val_loss", patience=9, smoothing=0.6)
    assert fit([3.0, 1.0, NAN, 0.5], stopping)[1].current_epoch == 3
    with pytest.raises(SettingError, match=r"smoothing must be in \[0, 1\), but is 1"):
        BestWeightsEarlyStopping("val_loss", smoothing=1)


def test_stops_when_lightnings_own_does_and_keeps_its_state():
    losses = [5.0, 4.0, 4.5, 3.9, 4.0, 4.0, 4.0, 1.0]
    settings = {"patience": 3, "min_delta": 0.3}
    ours, stock = BestWeightsEarlyStopping("val_loss", **settings), EarlyStopping("val_loss", **settings)
    assert fit(losses, ours)[1].current_epoch == fit(losses, stock)[1].current_epoch
    assert stock.state_dict().items() <= ours.state_dict().items()


def test_best_is_the_best_value_even_below_min_delta():
    weight, _ = fit([5.0, 4.0, 3.9, 3.95, 3.99], BestWeightsEarlyStopping("val_loss", min_delta=1.0, patience=3))
    assert weight == 3


def test_threshold_that_ends_the_run_counts_as_best():
    weight, trainer = fit([5.0, 4.0, 0.1, 3.0], BestWeightsEarlyStopping("val_loss", stopping_threshold=0.5))
    assert trainer.current_epoch == 3
    assert weight == 3


@pytest.mark.parametrize(
    "settings", [{"monitor": "val_accuracy"}, {"monitor": "val_loss", "also": {"val_accuracy": "min"}}]
)
def test_a_metric_that_is_watched_the_wrong_way_round_is_named(settings):
    module = Scripted([3.0, 1.0])
    module.on_validation_epoch_end = lambda: module.log("val_accuracy", torch.tensor(0.5))
    said = "keeps the weights with the lowest val_accuracy, .* is better where it is higher: set mode='max'"
    with pytest.warns(UserWarning, match=said):
        fit(module.losses, BestWeightsEarlyStopping(**settings), module=module)


def test_higher_can_be_better():
    assert fit([0.1, 0.9, 0.5], BestWeightsEarlyStopping("val_loss", mode="max"))[0] == 2


def test_without_restoring_the_last_weights_stay():
    stopping = BestWeightsEarlyStopping("val_loss", restore_best_weights=False)
    assert fit([1.0, 2.0, 3.0], stopping)[0] == 3
    assert stopping.best_epoch == 0


def checkpoints(folder):
    # As Lightning orders them: checkpoints see the state after early stopping's check.
    return ModelCheckpoint(folder, "best", monitor="val_loss"), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)


def test_after_a_resume_the_best_weights_are_found_again(tmp_path):
    losses = [3.0, 1.0, 2.0, 2.5, 2.5]
    fit(losses, BestWeightsEarlyStopping("val_loss", patience=9), *checkpoints(tmp_path), max_epochs=3)
    weight, _ = fit(
        losses,
        BestWeightsEarlyStopping("val_loss", patience=9),
        *checkpoints(tmp_path),
        ckpt_path=tmp_path / "epoch=2.ckpt",
    )
    assert weight == 2


def test_after_a_resume_without_a_best_checkpoint_it_says_so_and_leaves_the_weights(tmp_path):
    losses = [1.0, 2.0, 2.5]
    only_each = checkpoints(tmp_path)[1]
    fit(losses, BestWeightsEarlyStopping("val_loss", patience=9), only_each, max_epochs=2)
    with pytest.warns(UserWarning, match="val_loss was best in epoch 0, before this run was resumed"):
        weight, _ = fit(
            losses,
            BestWeightsEarlyStopping("val_loss", patience=9),
            checkpoints(tmp_path)[1],
            ckpt_path=tmp_path / "epoch=1.ckpt",
        )
    assert weight == 3


def test_best_checkpoint_of_another_epoch_is_not_taken_for_the_best(tmp_path):
    losses = [3.0, 1.0, 2.0, 2.2, 2.5]
    beside, elsewhere = checkpoints(tmp_path)[1], ModelCheckpoint(tmp_path / "new", "best", monitor="val_loss")
    fit(losses, BestWeightsEarlyStopping("val_loss", patience=9), beside, max_epochs=3)
    with pytest.warns(UserWarning, match="no best checkpoint of that epoch"):
        weight, _ = fit(
            losses,
            BestWeightsEarlyStopping("val_loss", patience=9),
            checkpoints(tmp_path)[1],
            elsewhere,
            ckpt_path=tmp_path / "epoch=2.ckpt",
        )
    assert weight == 5


def test_second_fit_of_one_instance_starts_afresh():
    stopping = BestWeightsEarlyStopping("val_loss", patience=9)
    fit([3.0, 1.0, 2.0], stopping)
    other = Scripted([9.0, 7.0, 8.0])
    torch.nn.init.constant_(other.weight, 100)
    assert fit([9.0, 7.0, 8.0], stopping, module=other)[0] == 102


def test_module_that_loads_loosely_is_restored_loosely():
    class Loose(Scripted):
        strict_loading = False

        def state_dict(self, *arguments, **settings):
            return {name: value for name, value in super().state_dict(*arguments, **settings).items() if name != "part"}

    module = Loose([1.0, 2.0])
    module.register_buffer("part", torch.zeros(()))
    assert fit([1.0, 2.0], BestWeightsEarlyStopping("val_loss"), module=module)[0] == 1


def test_extra_state_is_restored_too():
    class Counting(Scripted):
        def __init__(self, losses):
            super().__init__(losses)
            self.counts = {"steps": 0}

        def training_step(self, batch, batch_idx):
            self.counts["steps"] += 1
            return super().training_step(batch, batch_idx)

        def get_extra_state(self):
            return self.counts

        def set_extra_state(self, state):
            self.counts = state

    module = Counting([1.0, 2.0, 3.0])
    fit([1.0, 2.0, 3.0], BestWeightsEarlyStopping("val_loss"), module=module)
    assert module.counts == {"steps": 1}


@pytest.mark.slow
def test_processes_that_measure_different_values_restore_one_epoch(tmp_path):
    script = """
import sys, torch
torch.set_num_threads(1)
from lightning_reg.callbacks import BestWeightsEarlyStopping
from tests.callbacks.test_best_weights_early_stopping import Scripted
from tests.conftest import REPOSITORY
from tests.helpers import quiet_trainer

class Differs(Scripted):
    def validation_step(self, batch, batch_idx):
        losses = [[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]][self.global_rank]
        self.log("val_loss", torch.tensor(losses[self.current_epoch]))

    def on_fit_end(self):
        torch.save(self.weight.item(), f"{sys.argv[1]}/{self.global_rank}")

stopping = BestWeightsEarlyStopping("val_loss", patience=9)
trainer = quiet_trainer(stopping, devices=2, strategy="ddp_fork", max_epochs=3, num_sanity_val_steps=0)
trainer.fit(Differs([]), torch.zeros(1, 1), torch.zeros(1, 1))
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120, cwd=REPOSITORY)
    assert torch.load(tmp_path / "0") == torch.load(tmp_path / "1") == 2


def test_patience_is_the_configurations_after_a_resume(tmp_path):
    losses = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    fit(losses, BestWeightsEarlyStopping("val_loss", patience=9), *checkpoints(tmp_path), max_epochs=2)
    _, trainer = fit(
        losses,
        BestWeightsEarlyStopping("val_loss", patience=3),
        *checkpoints(tmp_path),
        ckpt_path=tmp_path / "epoch=1.ckpt",
    )
    assert trainer.current_epoch == 4


def test_checkpoints_hold_no_second_copy_of_the_weights(tmp_path):
    stopping = BestWeightsEarlyStopping("val_loss", also={"val_loss_2": "min"}, strict=False)
    fit([1.0], stopping, checkpoints(tmp_path)[1])
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["callbacks"]
    state = next(value for key, value in saved.items() if key.startswith("BestWeights"))
    assert not {"weight", "state_dict"} & {*state, *state["bests"], *state["waits"]}


def test_negative_patience_is_refused():
    with pytest.raises(SettingError, match="patience must be at least 0, but is -1"):
        BestWeightsEarlyStopping("val_loss", patience=-1)
