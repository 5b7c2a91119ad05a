"""Mixup beside the clean batch, as a regularizer."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from lightning_reg.callbacks import LogitPenalty, RegMixup
from lightning_reg.core.streams import random_stream
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, Textbook, loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer


def mix(model, inputs, labels):
    """Both halves, and half the sum of their losses, which is what a mean over them is."""
    stream = random_stream(0, model.rank, model.epoch, model.batch, "RegMixup", 0)
    stream.random()
    share = stream.betavariate(2.0, 2.0)
    weight, count = min(share, 1 - share), len(inputs)
    mixed = torch.stack([(1 - weight) * inputs[i] + weight * inputs[i - 1] for i in range(count)])

    def loss_of(logits):
        clean, other = logits[:count], logits[count:]
        own, partners = F.cross_entropy(other, labels), F.cross_entropy(other, labels.roll(1))
        model.half = (F.cross_entropy(clean, labels) + (1 - weight) * own + weight * partners) / 2
        return model.half

    return torch.cat([inputs, mixed]), loss_of


CONFORMANCE = {
    "RegMixup": Technique(
        lambda: RegMixup(alpha=2.0),
        lambda: RegMixup(prob=0.0),
        Textbook(mix=mix, term=lambda model, *_: model.half),  # and the other half
    ),
}


class Watches(SomebodysModule):
    """Keeps its batch and its outputs."""

    def training_step(self, batch, batch_idx):
        self.batch = batch
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.loss = outputs["loss"].detach()


def fit(module, *callbacks, train=None):
    trainer = quiet_trainer(*callbacks, limit_train_batches=1, limit_val_batches=0, log_every_n_steps=1)
    trainer.fit(module, train or loader(), loader())
    return trainer.callback_metrics


def test_the_first_half_is_the_batch_as_it_was():
    module = Watches()
    fit(module, RegMixup())
    inputs, labels = next(iter(loader()))
    assert module.batch[0][:8].equal(inputs)
    assert not module.batch[0][8:].equal(inputs)
    assert module.batch[1].equal(torch.cat([labels, labels]))


@pytest.mark.parametrize("first", [True, False])
def test_what_others_add_counts_once_whatever_the_order(first):
    module, penalty, mixing = Watches(), LogitPenalty(weight=0.5), RegMixup()
    metrics = fit(module, *((penalty, mixing) if first else (mixing, penalty)))
    torch.testing.assert_close(module.loss, 2 * metrics["train_loss"] + metrics["penalty/logit"])


def test_a_batch_of_one_has_no_partner():
    one = DataLoader([tuple(part[:1] for part in next(iter(loader())))], batch_size=None)
    module = Watches()
    with pytest.warns(UserWarning, match="RegMixup has no effect: no batch has a second sample"):
        metrics = fit(module, RegMixup(), train=one)
    torch.testing.assert_close(module.loss, metrics["train_loss"])


class OfLoss(SomebodysModule):
    """Has something in its batch that isn't of samples."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


def test_a_batch_without_one_row_a_sample_is_refused():
    batch = (*next(iter(loader())), torch.zeros(3))
    with pytest.raises(SettingError, match="one row a sample, so that RegMixup can repeat them"):
        fit(OfLoss(), RegMixup(), train=DataLoader([batch], batch_size=None))


def test_manual_optimization_is_refused():
    module = SomebodysModule()
    module.automatic_optimization = False
    with pytest.raises(SettingError, match="automatic_optimization must be True with RegMixup"):
        fit(module, RegMixup())


def test_bad_settings_are_refused_at_once():
    with pytest.raises(SettingError, match=r"alpha must be in \[0, ∞\), but is -1"):
        RegMixup(alpha=-1)
