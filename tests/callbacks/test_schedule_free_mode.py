"""Schedule-free optimizers of the package by their authors, against the paper's three sequences by hand."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from schedulefree import AdamWScheduleFree, SGDScheduleFree
from torch.optim.swa_utils import update_bn

from lightning_reg.callbacks import (
    BestWeightsEarlyStopping,
    ExponentialMovingAverage,
    Lookahead,
    ScheduleFreeMode,
    StochasticWeightAverage,
)
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, Swaps, equal, fit, state, val_loss
from tests.conformance.problem import LEARNING_RATE, Textbook, loader, resumable_loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class ByHand(torch.optim.Optimizer):
    """Equations 3 to 5 of the paper: z steps, x averages, and gradients are computed at y between them."""

    def __init__(self, parameters, rate=LEARNING_RATE, momentum=0.9):
        super().__init__(parameters, {"lr": rate, "momentum": momentum, "steps": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] += 1
            share, momentum = 1 / group["steps"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                held = self.state[parameter]
                z = held.get("z", parameter.double()) - group["lr"] * parameter.grad.double()
                x = (1 - share) * held.get("x", parameter.double()) + share * z
                held["z"], held["x"] = z, x
                parameter.averaged = x.to(parameter.dtype)
                parameter.copy_((1 - momentum) * z + momentum * x)


def schedule_free(parameters):
    optimizer = SGDScheduleFree(parameters, lr=LEARNING_RATE, momentum=0.9)
    optimizer.train()  # so that it can step without the callback, too
    return optimizer


def with_schedule_free(model):
    model.make_optimizer = schedule_free


CONFORMANCE = {
    "ScheduleFreeMode": Technique(
        ScheduleFreeMode,
        list,  # it has no strength, and is idle where it isn't
        Textbook(
            optimizer=ByHand,
            evaluated=lambda model: [getattr(parameter, "averaged", parameter) for parameter in model.parameters()],
        ),
        second=lambda: Lookahead(k=2, alpha=1.0),
        prepare=with_schedule_free,
    ),
}


def normed():
    return Normed(make_optimizer=lambda parameters: SGDScheduleFree(parameters, lr=0.1))


def by_hand(epochs=3):
    """The module with x and the statistics of it, and y."""
    module = Normed()
    optimizer = ByHand(module.parameters(), rate=0.1)
    for _ in range(epochs):
        module.train()
        for inputs, labels in loader():
            optimizer.zero_grad()
            F.cross_entropy(module(inputs), labels).backward()
            optimizer.step()
    trained = [parameter.detach().clone() for parameter in module.parameters()]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.averaged)
    module.eval()
    update_bn(loader(), module)
    return module, trained


def test_the_fit_validates_and_ends_with_the_average_and_statistics_of_it():
    module, trainer = fit(ScheduleFreeMode(), module=normed())
    expected, _ = by_hand()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=1e-5)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(val_loss(expected), abs=1e-5)
    (tested,) = trainer.test(module, loader(), verbose=False)
    assert tested["test_loss"] == pytest.approx(val_loss(expected), abs=1e-5)


class Modes(Callback):
    """In which mode the optimizer is, and which weights there are, whenever somebody looks."""

    def __init__(self):
        self.seen = []

    def look(self, trainer, when):
        self.seen.append((when, trainer.optimizers[0].param_groups[0]["train_mode"]))

    def on_train_batch_start(self, trainer, *_):
        self.look(trainer, "batch")

    def on_train_batch_end(self, trainer, *_):
        self.look(trainer, "batch")

    def on_validation_batch_start(self, trainer, *_):
        self.look(trainer, "validation")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.look(trainer, "checkpoint")

    def on_fit_end(self, trainer, pl_module):
        self.look(trainer, "end")


def test_the_optimizer_itself_is_in_the_mode_that_it_has_to_be_in(tmp_path):
    modes = Modes()
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    fit(modes, ScheduleFreeMode(), saves, module=normed(), enable_checkpointing=True, val_check_interval=2)
    assert set(modes.seen) == {("batch", True), ("validation", False), ("checkpoint", False), ("end", False)}


def test_others_that_swap_weights_in_their_validation_hooks_are_not_disturbed():
    swapped, _ = fit(ScheduleFreeMode(), Swaps(), module=normed())
    alone, _ = fit(ScheduleFreeMode(), module=normed())
    assert equal(state(swapped), state(alone))


def test_looking_changes_nothing_in_training(tmp_path):
    """Back and forth by the optimizer's own formulas would round."""

    class Trained(Callback):
        def __init__(self):
            self.weights = []

        def on_train_batch_start(self, trainer, pl_module, *_):
            self.weights.append(state(pl_module))

    seldom, often = Trained(), Trained()
    fit(seldom, ScheduleFreeMode(), module=normed(), limit_val_batches=0, num_sanity_val_steps=0)
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    fit(often, ScheduleFreeMode(), saves, module=normed(), enable_checkpointing=True, val_check_interval=2)
    assert all(equal(one, other) for one, other in zip(seldom.weights, often.weights, strict=True))


@pytest.mark.parametrize("make", [SGDScheduleFree, AdamWScheduleFree])
@pytest.mark.parametrize("step", [4, 12, 18])
def test_resumed_anywhere_is_uninterrupted(step, make, tmp_path):
    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        module = Normed(make_optimizer=lambda parameters: make(parameters, lr=0.05, warmup_steps=3))
        fit(ScheduleFreeMode(), saves, module=module, train=resumable_loader, enable_checkpointing=True, **how)
        return state(module)

    whole = run()
    (tmp_path / f"step={step}.ckpt").rename(tmp_path / "start.ckpt")
    assert equal(run(ckpt_path=tmp_path / "start.ckpt"), whole)


def test_a_checkpoint_holds_the_average_for_those_without_the_callback(tmp_path):
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    module, _ = fit(ScheduleFreeMode(), saves, module=normed(), enable_checkpointing=True)
    (tested,) = quiet_trainer().test(normed(), loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)
    assert tested["test_loss"] == pytest.approx(val_loss(module), abs=1e-6)
    saved = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["train_mode"] is False


def test_the_best_weights_are_the_averaged():
    stopping = BestWeightsEarlyStopping("val_loss", patience=10)
    module, _ = fit(stopping, ScheduleFreeMode(), module=normed(), max_epochs=4)
    assert val_loss(module) == pytest.approx(stopping.best_score.item(), abs=1e-6)
    by_training = BestWeightsEarlyStopping("train_loss", patience=10, check_on_train_epoch_end=True)
    module, _ = fit(by_training, ScheduleFreeMode(), module=normed(), max_epochs=3)
    expected, _ = by_hand()
    torch.testing.assert_close(list(module.parameters()), list(expected.parameters()), rtol=0, atol=1e-5)


def test_an_exception_leaves_the_trained_weights():
    class Fails(Normed):
        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking and self.trainer.current_epoch == 2:
                raise InterruptedError

    module = Fails(make_optimizer=lambda parameters: SGDScheduleFree(parameters, lr=0.1))
    with pytest.raises(InterruptedError):
        fit(ScheduleFreeMode(), module=module)
    torch.testing.assert_close(list(module.parameters()), by_hand()[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("other", [ExponentialMovingAverage, StochasticWeightAverage, EMAWeightAveraging])
def test_another_average_is_refused(other):
    with pytest.raises(SettingError, match="with ScheduleFreeMode, whose optimizer averages the weights itself"):
        fit(ScheduleFreeMode(), other(), module=normed())


def test_other_optimizers_and_settings_are_refused():
    with pytest.raises(SettingError, match=r"optimizer must be schedule-free .* but is SGD"):
        fit(ScheduleFreeMode())
    with pytest.raises(SettingError, match="buffers must be one of recompute, copy, but is 'average'"):
        ScheduleFreeMode(buffers="average")
