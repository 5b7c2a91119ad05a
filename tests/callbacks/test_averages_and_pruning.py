"""Averages beside pruning, and beside whatever else writes weights while the module has an average."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from torch.nn.utils import prune

from lightning_reg.callbacks import ExponentialMovingAverage, LatestWeightAverage, StochasticWeightAverage
from tests.callbacks.averaged import Normed, fit, trained
from tests.callbacks.test_averages_follow import TOLERANCE, AtBatch, moving_average
from tests.conformance.problem import BATCHES, loader
from tests.helpers import quiet_trainer


def pruning_of(module, *, amount=0.3, **settings):
    return ModelPruning("l1_unstructured", parameters_to_prune=[(module.net[0], "weight")], amount=amount, **settings)


@pytest.mark.parametrize(
    "make", [lambda: ExponentialMovingAverage(decay=0.5), lambda: StochasticWeightAverage(start=0)]
)
def test_what_pruning_has_taken_away_for_good_stays_away(make):
    module = Normed()
    pruning = pruning_of(module, amount=0.5)
    fit(pruning, make(), module=module)
    alone = Normed()
    pruning = pruning_of(alone, amount=0.5)
    fit(pruning, module=alone)
    zeros, expected = (int((pruned.net[0].weight == 0).sum()) for pruned in (module, alone))
    assert zeros == expected > 0


def test_pruning_renames_and_the_average_follows():
    look = lambda module: getattr(module.net[0], "weight_orig", module.net[0].weight)  # noqa: E731
    watch = AtBatch(4, lambda module: prune.l1_unstructured(module.net[0], "weight", amount=0.3), look)
    module, _ = fit(watch, average := ExponentialMovingAverage(decay=0.8, warmup=False))
    expected = moving_average(watch.seen, 0.8)
    torch.testing.assert_close(module.net[0].weight_orig.detach(), expected, **TOLERANCE)
    assert torch.equal(trained(average)["net.0.weight_orig"], watch.seen[-1])
    # And back.
    both = AtBatch(4, lambda module: prune.l1_unstructured(module.net[0], "weight", amount=0.3), look)
    back = AtBatch(9, lambda module: prune.remove(module.net[0], "weight"), look)
    module, _ = fit(both, back, ExponentialMovingAverage(decay=0.8, warmup=False))
    torch.testing.assert_close(module.net[0].weight.detach(), moving_average(back.seen, 0.8), **TOLERANCE)


class Idle(Normed):
    """Has a validation that measures nothing."""

    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize("make", ["ema", "swa"])
def test_an_average_follows_what_pruning_renames_in_validation(make):
    module = Idle()
    pruning = pruning_of(module, prune_on_train_epoch_end=False, make_pruning_permanent=False)
    watch = AtBatch(0, None, lambda module: module.net[3].weight)
    average = {
        "ema": ExponentialMovingAverage(decay=0.8, warmup=False),
        "swa": StochasticWeightAverage(start=0, interval="step", buffers="copy"),
    }[make]
    trainer = quiet_trainer(pruning, watch, average, max_epochs=3)
    trainer.fit(module, loader(), loader())
    expected = moving_average(watch.seen, 0.8) if make == "ema" else torch.stack(watch.seen).mean(0)
    torch.testing.assert_close(module.net[3].weight.detach(), expected, **TOLERANCE)
    assert not torch.equal(trained(average)["net.0.weight_orig"], module.net[0].weight_orig)


@pytest.mark.parametrize("rewinds", [True, False])
@pytest.mark.parametrize("make", ["ema", "swa"])
def test_pruning_within_validation_prunes_and_rewinds_the_trained_weights(make, rewinds):
    def look(module):
        return getattr(module.net[0], "weight_orig", module.net[0].weight)

    def pruned(*callbacks):
        module, watch = Idle(), AtBatch(0, None, look)
        pruning = pruning_of(
            module,
            prune_on_train_epoch_end=False,
            use_lottery_ticket_hypothesis=rewinds,
            make_pruning_permanent=False,
        )
        quiet_trainer(pruning, watch, *callbacks, max_epochs=3).fit(module, loader(), loader())
        return module, watch.seen

    average = {
        "ema": ExponentialMovingAverage(decay=0.8, warmup=False),
        "swa": StochasticWeightAverage(start=0, interval="step", buffers="copy"),
    }[make]
    (module, seen), (alone, alike) = pruned(average), pruned()
    assert all(map(torch.equal, seen, alike))
    assert torch.equal(module.net[0].weight_mask, alone.net[0].weight_mask)
    expected = moving_average(seen, 0.8) if make == "ema" else torch.stack(seen).mean(0)
    torch.testing.assert_close(module.net[0].weight_orig.detach(), expected, **TOLERANCE)


class AtStart(Callback):
    """Remembers what training starts from, and the average at that time."""

    def __init__(self, average):
        self.average, self.weights, self.averaged = average, {}, {}

    def on_train_start(self, trainer, pl_module):
        self.weights = {name: weight.detach().clone() for name, weight in pl_module.named_parameters()}
        self.averaged = {name: weight.clone() for name, weight in self.average.last_result.weights.items()}


def of_both(first, last):
    return torch.cat([first.flatten(), last.flatten()]).detach()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("is_first", [True, False])
def test_checkpoints_of_what_is_pruned_hold_weights_and_average_under_their_mask(is_first, reports, tmp_path):
    def look(module):
        return of_both(getattr(module.net[0], "weight_orig", module.net[0].weight), module.net[3].weight)

    def run(*others, epochs, **how):
        module = Idle()
        average = ExponentialMovingAverage(decay=0.8, warmup=False)
        averages = [LatestWeightAverage(window=2), average] if reports else [average]
        pruning = pruning_of(module, use_lottery_ticket_hypothesis=False)
        callbacks = [pruning, *averages] if is_first else [*averages, pruning]
        start = AtStart(average)
        saves = any(isinstance(other, ModelCheckpoint) for other in others)
        trainer = quiet_trainer(*callbacks, *others, start, max_epochs=epochs, enable_checkpointing=saves)
        trainer.fit(module, loader(), loader(), **how)
        return start

    watch = AtBatch(0, None, look)
    run(watch, ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True), epochs=2)
    for epoch in range(2):
        seen = watch.seen[: (epoch + 1) * BATCHES]
        path = tmp_path / f"epoch={epoch}.ckpt"
        names = ("net.0.weight", "net.3.weight")
        start = run(epochs=3, ckpt_path=path)
        weights, average = (of_both(*map(of.get, names)) for of in (start.weights, start.averaged))
        mask = weights != 0
        assert not mask.all()
        assert torch.equal(weights, seen[-1] * mask)
        torch.testing.assert_close(average, moving_average(seen, 0.8) * mask, **TOLERANCE)
        if not reports:
            saved = torch.load(path)["state_dict"]
            assert torch.equal(of_both(*map(saved.get, names)), average)


class InValidation(Callback):
    """Does something to the first layer when a validation ends."""

    def __init__(self, act):
        self.act = act

    def on_validation_epoch_end(self, trainer, pl_module):
        self.act(pl_module.net[0])


def test_weights_that_are_written_in_validation_are_told_of():
    def halve(layer):
        layer.weight.data *= 0.5

    def fitted(*callbacks):
        quiet_trainer(*callbacks, max_epochs=2).fit(Idle(), loader(), loader())

    with pytest.warns(UserWarning, match="changed in validation, while the module had the average"):
        fitted(InValidation(halve), ExponentialMovingAverage(decay=0.8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fitted(InValidation(repr), ExponentialMovingAverage(decay=0.8))
        fitted(InValidation(lambda layer: prune.l1_unstructured(layer, "weight", 0.3)), LatestWeightAverage(window=2))
