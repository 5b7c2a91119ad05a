"""Snapshots of one training, against one that is written out and networks that are evaluated one by one."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_reg.callbacks import ExponentialMovingAverage, Lookahead, SnapshotEnsemble
from lightning_reg.functional.annealing import cycle_ends
from lightning_reg.functional.weights.ensembles import log_mean_sigmoid, log_mean_softmax
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, equal, fit, state
from tests.conformance.problem import BATCHES, EPOCHS, Textbook, loader, resumable_loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


def huangs_rate(step, steps, cycles):
    """Equation 2 of the paper, whose steps count from 1, where all cycles are as long."""
    length = math.ceil(steps / cycles)
    return (math.cos(math.pi * (step % length) / length) + 1) / 2


CONFORMANCE = {
    "SnapshotEnsemble": Technique(
        lambda: SnapshotEnsemble(cycles=2),
        lambda: SnapshotEnsemble(cycles=2, floor=1.0),
        Textbook(rate=lambda step, steps: huangs_rate(step, steps, 2)),
        second=lambda: Lookahead(k=2, alpha=1.0),
    ),
}


def by_hand(epochs=4, cycles=4, module=None, rate=0.1):
    """Trains in cycles, and returns copies of the module as they end."""
    module = Normed() if module is None else module
    optimizer, copies = module.configure_optimizers(), []
    steps = epochs * BATCHES
    for step in range(steps):
        inputs, labels = list(loader())[step % BATCHES]
        module.train()
        optimizer.param_groups[0]["lr"] = rate * huangs_rate(step, steps, cycles)
        optimizer.zero_grad()
        module.training_loss(inputs, labels).backward()
        optimizer.step()
        if (step + 1) % (steps // cycles) == 0:
            copies.append(copy.deepcopy(module).eval())
    return module, copies


class Labeled(Normed):
    def training_loss(self, inputs, labels):
        return F.cross_entropy(self(inputs), labels)


@torch.no_grad()
def mean_probabilities(copies):
    return torch.stack(
        [torch.cat([module(inputs) for inputs, _ in loader()]).double().softmax(1) for module in copies]
    ).mean(0)


def labels():
    return torch.cat([batch[1] for batch in loader()])


def test_fit_test_and_predict_have_the_mean_of_the_probabilities_of_whole_networks():
    ensemble = SnapshotEnsemble(cycles=4, last=3)
    module, trainer = fit(ensemble, module=Labeled(), max_epochs=4)
    trained, copies = by_hand(module=Labeled())
    torch.testing.assert_close(dict(module.state_dict()), dict(trained.state_dict()), rtol=0, atol=1e-6)
    expected = mean_probabilities(copies[-3:])
    loss, before = F.nll_loss(expected.log(), labels()).item(), state(module)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(loss, abs=1e-5)
    assert trainer.test(module, loader(), verbose=False)[0]["test_loss"] == pytest.approx(loss, abs=1e-5)
    predicted = torch.cat(trainer.predict(module, loader()))
    torch.testing.assert_close(predicted.double().softmax(1), expected, rtol=0, atol=1e-5)
    assert equal(state(module), before)
    # Each has statistics of its own.
    means = [snapshot["net.1.running_mean"] for snapshot in ensemble.snapshots]
    torch.testing.assert_close(means, [module.net[1].running_mean for module in copies[-3:]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("trained", [0, 1])
def test_a_layer_that_is_frozen_for_a_cycle_has_its_value_in_each_snapshot(trained):
    class TrainsForACycle(Callback):
        seen = ()

        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[0].requires_grad_(trainer.current_epoch == trained)

        def on_validation_epoch_end(self, trainer, pl_module):
            self.seen += (copy.deepcopy(pl_module.net),)

    callback = TrainsForACycle()
    module, trainer = fit(SnapshotEnsemble(cycles=2), callback, max_epochs=2, num_sanity_val_steps=0)
    predicted = torch.cat(trainer.predict(module, loader())).softmax(1)
    torch.testing.assert_close(predicted.double(), mean_probabilities(callback.seen), rtol=0, atol=1e-6)


def test_validations_of_the_fit_see_the_snapshots_so_far_and_leave_training_alone():
    losses = []

    class Watches(Labeled):
        def on_validation_epoch_end(self):
            losses.append(self.trainer.callback_metrics.get("val_loss", torch.zeros(())).item())

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            assert all(parameter.requires_grad for parameter in self.parameters())

    def run(**settings):
        return fit(SnapshotEnsemble(cycles=4, **settings), module=Watches(), max_epochs=4, num_sanity_val_steps=0)

    module, trainer = run()
    other, plain = run(validate="trained")
    assert equal(state(module), state(other))
    _, copies = by_hand(module=Labeled())
    last = F.nll_loss(mean_probabilities(copies[-1:]).log(), labels()).item()
    assert plain.callback_metrics["val_loss"].item() == pytest.approx(last, abs=1e-5)
    assert trainer.callback_metrics["val_loss"].item() != pytest.approx(last, abs=1e-3)
    assert plain.test(other, loader(), verbose=False)[0]["test_loss"] == pytest.approx(
        trainer.callback_metrics["val_loss"].item(), abs=1e-6
    )


def test_a_checkpoint_is_the_set_in_a_new_trainer_and_another_module(tmp_path):
    ensemble = SnapshotEnsemble(cycles=3)
    module, trainer = fit(ensemble, module=Labeled())
    tested = trainer.test(module, loader(), verbose=False)[0]["test_loss"]
    trainer.save_checkpoint(tmp_path / "set.ckpt")
    for again in (SnapshotEnsemble(cycles=3), ensemble):
        other = Labeled(rate=0.3)
        (metrics,) = quiet_trainer(again).test(other, loader(), ckpt_path=tmp_path / "set.ckpt", verbose=False)
        assert metrics["test_loss"] == pytest.approx(tested, abs=1e-7)


def test_without_snapshots_of_the_module_its_own_weights_are_evaluated_and_that_is_said(tmp_path):
    ensemble = SnapshotEnsemble(cycles=3)
    _, trainer = fit(ensemble, module=Labeled())
    other = Labeled()
    plain = quiet_trainer().test(other, loader(), verbose=False)
    with pytest.warns(UserWarning, match="has no snapshots of this module"):
        assert trainer.test(other, loader(), verbose=False) == plain
    bare = quiet_trainer(max_epochs=1)
    bare.fit(other, loader(), loader())
    bare.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(UserWarning, match="has no snapshots of this module"):
        trainer.test(other, loader(), ckpt_path=tmp_path / "plain.ckpt", verbose=False)


@pytest.mark.parametrize("step", [4, 6, 11])
def test_resumed_anywhere_has_the_same_set(step, tmp_path):
    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        ensemble = SnapshotEnsemble(cycles=3, growth=2)
        module, _ = fit(ensemble, saves, module=Labeled(), train=resumable_loader, enable_checkpointing=True, **how)
        return state(module), [dict(snapshot) for snapshot in ensemble.snapshots]

    whole, snapshots = run()
    (tmp_path / f"step={step}.ckpt").rename(tmp_path / "start.ckpt")
    resumed, again = run(ckpt_path=tmp_path / "start.ckpt")
    assert equal(resumed, whole)
    assert len(again) == len(snapshots) == 3
    assert all(equal(one, other) for one, other in zip(again, snapshots, strict=True))


class Labels(Labeled):
    def training_loss(self, inputs, labels):
        return F.binary_cross_entropy_with_logits(self(inputs), F.one_hot(labels, 3).float())

    def training_step(self, batch, batch_idx):
        return self.training_loss(*batch)


class Numbers(Labels):
    def training_loss(self, inputs, labels):
        return F.mse_loss(self(inputs), F.one_hot(labels, 3).float())


class Sigmoids(Labels):
    def training_loss(self, inputs, labels):
        return F.binary_cross_entropy(self(inputs).sigmoid(), F.one_hot(labels, 3).float())


class Sequences(Labels):
    """Logits (N, T, C), joined for the loss."""

    def forward(self, inputs):
        return self.net(inputs).unsqueeze(1).expand(-1, 2, -1)

    def training_loss(self, inputs, labels):
        return F.cross_entropy(self(inputs).reshape(-1, 3), labels.repeat_interleave(2))

    def validation_step(self, batch, batch_idx):
        self(batch[0])


@pytest.mark.parametrize(
    ("kind", "probabilities", "mean"),
    [
        (Labels, torch.sigmoid, torch.sigmoid),
        (Sigmoids, torch.sigmoid, torch.sigmoid),
        (Numbers, lambda outputs: outputs, lambda outputs: outputs),
        (Sequences, lambda outputs: outputs.softmax(2), lambda outputs: outputs.softmax(2)),
    ],
)
def test_the_loss_tells_what_is_averaged(kind, probabilities, mean):
    module, trainer = fit(SnapshotEnsemble(cycles=4), module=kind(), max_epochs=4)
    _, copies = by_hand(module=kind())
    with torch.no_grad():
        expected = torch.stack(
            [torch.cat([probabilities(copied(inputs).double()) for inputs, _ in loader()]) for copied in copies[-3:]]
        ).mean(0)
    predicted = mean(torch.cat(trainer.predict(module, loader())).double())
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-5)


def test_logits_of_means_are_those_of_float64():
    generator = torch.Generator().manual_seed(0)
    logits = [30 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    softmax = torch.stack([entry.softmax(1) for entry in logits]).mean(0)
    torch.testing.assert_close(log_mean_softmax(logits), softmax.log())
    sigmoid = torch.stack([entry.sigmoid() for entry in logits]).mean(0)
    inverse = torch.stack([(-entry).sigmoid() for entry in logits]).mean(0)
    torch.testing.assert_close(log_mean_sigmoid(logits), sigmoid.log() - inverse.log())
    assert log_mean_softmax([entry.half() for entry in logits]).dtype == torch.half


@pytest.mark.parametrize("steps", [7, 105, 1000])
@pytest.mark.parametrize("growth", [1, 1.5, 2])
def test_cycles_share_the_training(steps, growth):
    ends = cycle_ends(steps, 3, growth)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert ends[-1] == steps
    assert [length * growth**-index for index, length in enumerate(lengths)] == pytest.approx(
        [steps / (1 + growth + growth**2)] * 3, abs=1
    )


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_networks_take_part(in_place):
    module = Labeled()
    if in_place:
        module.net.compile(backend="aot_eager")
    else:
        module.net = torch.compile(module.net, backend="aot_eager")
    _, trainer = fit(SnapshotEnsemble(cycles=2), module=module, max_epochs=2)
    _, plain = fit(SnapshotEnsemble(cycles=2), module=Labeled(), max_epochs=2)
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(
        plain.callback_metrics["val_loss"].item(), abs=1e-6
    )


class TwoNetworks(Labeled):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)


class Scheduled(Labeled):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Tuples(Labeled):
    def forward(self, inputs):
        return super().forward(inputs), inputs

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0])[0], batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])


class CallsAnother(Labeled):
    """Trains a network, and evaluates by way of forward, which returns more than the network does."""

    def forward(self, inputs):
        return {"logits": self.net(inputs)}

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def evaluated(self, batch):
        return F.cross_entropy(self(batch[0])["logits"], batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.evaluated(batch))

    def test_step(self, batch, batch_idx):
        self.evaluated(batch)


class OwnLoss(Labeled):
    def training_step(self, batch, batch_idx):
        return -self(batch[0]).log_softmax(1)[:, 0].mean()


class Slices(Labeled):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net[1:](self.net[:1](batch[0])), batch[1])


class Manual(Labeled):
    automatic_optimization = False


class Differentiates(Labeled):
    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            self(batch[0])


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (TwoNetworks, {}, "training_step must call one network .* but calls self.net and self.head"),
        (Scheduled, {}, "must return no scheduler of the learning rate .* but returns StepLR"),
        (Tuples, {}, "must return a tensor of one row a sample .* but returns a tuple"),
        (CallsAnother, {}, "must return a tensor of one row a sample .* but returns a dict in validation_step"),
        (Slices, {}, "training_step must call the module or a network that is its child .* a slice, isn't enough"),
        (OwnLoss, {}, "outputs must be 'logits', 'binary_logits' or 'values'"),
        (Manual, {}, "automatic_optimization must be True"),
        (Differentiates, {}, "an evaluation must not enable gradients"),
        (Labeled, {"max_steps": 5, "max_epochs": -1}, "at least 2 of the 5 optimizer steps to each, but is 3"),
        (Labeled, {"max_epochs": -1}, "must say how long training is"),
        (Labeled, {"callbacks": [ExponentialMovingAverage()]}, "must not have ExponentialMovingAverage"),
        (Labeled, {"callbacks": [SnapshotEnsemble(cycles=2)]}, "must not have SnapshotEnsemble"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, settings, message):
    others = settings.pop("callbacks", [])
    with pytest.raises(SettingError, match=message) as error:
        fit(SnapshotEnsemble(cycles=3), *others, module=make(), **settings)
    assert "\n" not in str(error.value)


def test_networks_can_be_exported_in_the_middle_of_a_fit():
    class Exports(Callback):
        def on_validation_end(self, trainer, pl_module):
            self.exported = [torch.export.export(part, (inputs,)).module() for part in (pl_module.net, pl_module)]

        def on_train_end(self, trainer, pl_module):
            pl_module.eval()
            self.expected = pl_module(inputs).detach()

    inputs, exports = next(iter(loader()))[0], Exports()
    fit(SnapshotEnsemble(cycles=2), exports, module=Labeled())
    for exported in exports.exported:
        torch.testing.assert_close(exported(inputs).detach(), exports.expected)


def test_a_dict_in_evaluation_is_refused_where_the_ensemble_evaluates_alone():
    module, trainer = fit(SnapshotEnsemble(cycles=2, validate="trained"), module=CallsAnother())
    assert "val_loss" in trainer.callback_metrics
    with pytest.raises(SettingError, match="but returns a dict in test_step"):
        trainer.test(module, loader(), verbose=False)


def test_a_single_snapshot_may_return_whatever_the_network_does():
    module, trainer = fit(SnapshotEnsemble(cycles=2, last=1), module=CallsAnother())
    _, plain = fit(SnapshotEnsemble(cycles=2, last=1), module=Labeled())
    assert trainer.callback_metrics["val_loss"] == plain.callback_metrics["val_loss"]
    trainer.test(module, loader(), verbose=False)


def test_a_training_of_another_length_is_refused_on_resume(tmp_path):
    _, trainer = fit(SnapshotEnsemble(cycles=2), module=Labeled(), max_epochs=EPOCHS)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(SettingError, match="max_epochs must leave training as long as it was"):
        fit(SnapshotEnsemble(cycles=2), module=Labeled(), max_epochs=5, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycles": 0}, "cycles must be a whole number of at least 1, but is 0"),
        ({"cycles": 2, "last": 3}, "last must be at most cycles, which is 2, but is 3"),
        ({"cycles": 2, "growth": 0.5}, "growth must be in"),
        ({"cycles": 2, "floor": 1.5}, "floor must be in"),
        ({"cycles": 2, "outputs": "logit"}, "outputs must be one of"),
        ({"cycles": 2, "validate": "both"}, "validate must be one of"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        SnapshotEnsemble(**settings)
