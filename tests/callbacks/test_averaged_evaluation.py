"""Where averaged weights are evaluated and saved, and where trained ones are left."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from lightning_reg.callbacks import ExponentialMovingAverage, StochasticWeightAverage, WiSEFT
from tests.callbacks.averaged import Normed, Swaps, Weights, equal, fit, state, trained, trains_alike
from tests.conformance.problem import BATCHES, loader, resumable_loader
from tests.helpers import quiet_trainer

# Lightning says so of every checkpoint that a trainer without its ModelCheckpoint loads.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class Fails(Callback):
    def on_validation_batch_end(self, trainer, pl_module, *_):
        if trainer.current_epoch == 1:
            raise InterruptedError


@pytest.mark.parametrize("validate", ["averaged", "both"])
def test_an_exception_in_validation_leaves_the_trained_weights(validate):
    without, _ = fit(max_epochs=2)
    module = Normed()
    with pytest.raises(InterruptedError):
        fit(ExponentialMovingAverage(decay=0.8, validate=validate), Fails(), module=module)
    assert equal(state(module), state(without))


@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize("average", [ExponentialMovingAverage, lambda: StochasticWeightAverage(start=0), WiSEFT])
def test_others_that_swap_weights_in_their_validation_hooks_are_not_disturbed(average, comes_first):
    callbacks = [average(), Swaps()] if comes_first else [Swaps(), average()]
    assert trains_alike(*callbacks)


def test_weights_that_are_set_at_the_end_of_validation_stay():
    class Sets(Callback):
        def on_validation_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.net[3].bias.fill_(7.0)

    seen = Weights()
    fit(ExponentialMovingAverage(decay=0.8), Sets(), seen, max_epochs=2)
    assert all(weights[-1].mean() > 6 for weights in seen.seen[BATCHES:])


def test_an_exception_in_the_extra_pass_leaves_the_trained_weights():
    class Failing(Normed):
        def validation_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 1 and not self.trainer.callbacks:
                raise InterruptedError
            super().validation_step(batch, batch_idx)

    without, _ = fit(max_epochs=2)
    module, average = Failing(), ExponentialMovingAverage(decay=0.8, validate="both")
    trainer = quiet_trainer(average, max_epochs=3)
    with pytest.raises(InterruptedError):
        trainer.fit(module, loader(), loader())
    assert equal(state(module), state(without))
    assert average in trainer.callbacks
    assert "run" not in vars(trainer.fit_loop.epoch_loop.val_loop)


@pytest.fixture
def saved(tmp_path):
    """A fit, and the checkpoint that was best."""
    best = ModelCheckpoint(tmp_path, "best", monitor="val_loss", enable_version_counter=False)
    module, trainer = fit(ExponentialMovingAverage(decay=0.8), best, enable_checkpointing=True)
    return module, trainer, best.best_model_path


def predictions(trainer, *args, **settings):
    return torch.cat(trainer.predict(*args, dataloaders=loader(), **settings))


@pytest.mark.parametrize("weights_only", [False, True])
def test_test_and_predict_use_the_average_wherever_they_run(saved, weights_only):
    module, trainer, path = saved
    averaged = state(module)
    measured = trainer.callback_metrics["val_loss"].item()
    # The last epoch was the best.
    for how in (
        lambda: trainer.test(module, loader(), verbose=False),
        lambda: trainer.test(module, loader(), ckpt_path="best", weights_only=weights_only, verbose=False),
        lambda: quiet_trainer().test(Normed(), loader(), ckpt_path=path, weights_only=weights_only, verbose=False),
        lambda: quiet_trainer(ExponentialMovingAverage(decay=0.8)).test(
            Normed(), loader(), ckpt_path=path, weights_only=weights_only, verbose=False
        ),
    ):
        assert how()[0]["test_loss"] == pytest.approx(measured, abs=1e-6)
        assert equal(state(module), averaged)
    expected = predictions(trainer, module)
    assert torch.equal(expected, predictions(trainer, module, ckpt_path="best"))
    assert torch.equal(expected, predictions(quiet_trainer(), Normed(), ckpt_path=path))
    assert equal(state(Normed.load_from_checkpoint(path)), averaged)


def test_a_failing_test_after_the_fit_leaves_the_average(saved):
    module, trainer, _ = saved
    averaged = state(module)

    class Broken(Normed):
        def test_step(self, batch, batch_idx):
            raise InterruptedError

    module.__class__ = Broken
    with pytest.raises(InterruptedError):
        trainer.test(module, loader(), verbose=False)
    assert equal(state(module), averaged)


def test_checkpoints_without_callbacks_hold_the_average(tmp_path):
    saves = ModelCheckpoint(tmp_path, "slim", save_weights_only=True)
    module, _ = fit(ExponentialMovingAverage(decay=0.8), saves, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "slim.ckpt", weights_only=True)
    assert equal(checkpoint["state_dict"], state(module))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_resumed_after_the_fit_is_uninterrupted(tmp_path, accumulate):
    """From a checkpoint that the trainer saved when the fit was over, and the module had the average."""
    settings = {"accumulate_grad_batches": accumulate, "train": resumable_loader}
    whole, _ = fit(ExponentialMovingAverage(decay=0.8), max_epochs=4, **settings)
    _, trainer = fit(ExponentialMovingAverage(decay=0.8), max_epochs=2, **settings)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(ExponentialMovingAverage(decay=0.8), max_epochs=4, ckpt_path=tmp_path / "half.ckpt", **settings)
    assert equal(state(resumed), state(whole))


def test_resumed_after_an_exception_is_uninterrupted(tmp_path):
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_on_exception=True, enable_version_counter=False)

    class FailsAtEpoch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise InterruptedError

    settings = {"train": resumable_loader, "enable_checkpointing": True}
    whole, _ = fit(ExponentialMovingAverage(decay=0.8), **settings)
    average = ExponentialMovingAverage(decay=0.8)
    with pytest.raises(InterruptedError):
        fit(average, FailsAtEpoch(), saves, **settings)
    path = next(tmp_path.glob("*.ckpt"))
    again = ModelCheckpoint(tmp_path)
    resumed, _ = fit(ExponentialMovingAverage(decay=0.8), again, ckpt_path=path, **settings)
    assert equal(state(resumed), state(whole))


def test_a_second_fit_begins_anew():
    average = ExponentialMovingAverage(decay=0.8)
    fit(average)
    again, _ = fit(average)
    once, _ = fit(ExponentialMovingAverage(decay=0.8))
    assert equal(state(again), state(once))


class Records(Logger):
    """Keeps what is logged."""

    name = version = "records"

    def __init__(self):
        super().__init__()
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))

    def log_hyperparams(self, *_, **__):
        pass


def test_raw_and_averaged_are_reported_in_one_run():
    records = Records()
    _, plain = fit()
    _, averaged = fit(ExponentialMovingAverage(decay=0.8))
    _, both = fit(ExponentialMovingAverage(decay=0.8, validate="both"), logger=records, log_every_n_steps=1)
    assert both.callback_metrics["val_loss"] == plain.callback_metrics["val_loss"]
    assert both.callback_metrics["ema/val_loss"] == averaged.callback_metrics["val_loss"]
    assert both.callback_metrics["ema/val_loss"] != both.callback_metrics["val_loss"]
    logged = {
        name: [(step, m[name]) for step, m in records.logged if name in m] for name in ("val_loss", "ema/val_loss")
    }
    assert [step for step, _ in logged["ema/val_loss"]] == [step for step, _ in logged["val_loss"]]
    assert logged["ema/val_loss"][-1][1] == averaged.callback_metrics["val_loss"]


def test_two_with_different_decays_report_side_by_side():
    _, first = fit(ExponentialMovingAverage(decay=0.8))
    _, second = fit(ExponentialMovingAverage(decay=0.5))
    module, both = fit(ExponentialMovingAverage(decay=0.8), ExponentialMovingAverage(decay=0.5))
    assert both.callback_metrics["val_loss"] == first.callback_metrics["val_loss"]
    assert both.callback_metrics["ema_2/val_loss"] == second.callback_metrics["val_loss"]
    assert equal(state(module), state(first.lightning_module))


def test_two_resume_exactly(tmp_path):
    def both():
        return ExponentialMovingAverage(decay=0.8), ExponentialMovingAverage(decay=0.5)

    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    settings = {"enable_checkpointing": True, "train": resumable_loader}
    whole, uninterrupted = fit(*both(), saves, **settings)
    again = ModelCheckpoint(tmp_path)
    resumed, trainer = fit(*both(), again, ckpt_path=tmp_path / "epoch=1.ckpt", **settings)
    assert equal(state(resumed), state(whole))
    for name in ("val_loss", "ema_2/val_loss"):
        assert trainer.callback_metrics[name] == uninterrupted.callback_metrics[name]


def test_the_extra_pass_is_nobody_elses_business():
    """It draws from no stream, counts for nobody's patience, and can be monitored."""

    class Counts(Callback):
        seen = 0

        def on_validation_batch_end(self, *_):
            self.seen += 1

    counts, stopping = Counts(), EarlyStopping("ema/val_loss", patience=3, mode="max")
    torch.manual_seed(5)
    _, trainer = fit(ExponentialMovingAverage(validate="both"), counts, stopping, num_sanity_val_steps=0)
    with_it = torch.get_rng_state()
    torch.manual_seed(5)
    fit(num_sanity_val_steps=0)
    assert torch.equal(with_it, torch.get_rng_state())
    assert counts.seen == 3 * BATCHES
    assert stopping.wait_count == 2
    assert trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.completed == BATCHES


def test_settings_that_change_on_resume_leave_the_trained_weights_exact(tmp_path):
    """Lightning finds a callback's state by its settings; ours must not be lost with them."""
    without, _ = fit(train=resumable_loader)
    _, trainer = fit(ExponentialMovingAverage(decay=0.8), max_epochs=2, train=resumable_loader)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    average = ExponentialMovingAverage(decay=0.5, every_n_steps=2)
    fit(average, ckpt_path=tmp_path / "half.ckpt", train=resumable_loader)
    expected = dict(without.named_parameters())
    assert equal({name: trained(average)[name] for name in expected}, expected)
    assert average.updates == 2 * BATCHES + BATCHES // 2
