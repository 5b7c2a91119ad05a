"""Label smoothing of a loss that somebody else's training step computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_reg.callbacks import BatchMixing, LabelSmoothing, StrengthSchedule
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.conformance.problem import SomebodysModule, Textbook, loader, samples, weights_of
from tests.conformance.technique import OFF, Technique
from tests.helpers import quiet_trainer


def smoothed(logits, labels, smoothing):
    """The mean over samples of -Σ q log p, with q written out."""
    losses = []
    for row, label in zip(logits.float(), labels, strict=True):
        target = torch.full_like(row, smoothing / len(row))
        target[label] += 1 - smoothing
        losses.append(-(target * (row - row.exp().sum().log())).sum())
    return torch.stack(losses).mean()


def textbook(smoothing):
    return Textbook(
        mix=lambda model, inputs, labels: (inputs, lambda logits: smoothed(logits, labels, smoothing(model.epoch)))
    )


CONFORMANCE = {
    "LabelSmoothing": Technique(
        lambda: LabelSmoothing(smoothing=0.2), lambda: LabelSmoothing(smoothing=0.0), textbook(lambda _: 0.2)
    ),
    "LabelSmoothing scheduled": Technique(
        lambda: LabelSmoothing(smoothing=0.3, schedule=StrengthSchedule(kind="constant", start=1.0, end=0.5, begin=1)),
        lambda: LabelSmoothing(smoothing=0.3, schedule=OFF),
        textbook(lambda epoch: 0.15 if epoch else 0.3),
        second=lambda: LabelSmoothing(smoothing=0.0),
    ),
}


class OfLoss(SomebodysModule):
    """Computes its loss as a test asks for."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss


def fit(loss, *callbacks):
    module = OfLoss(loss)
    trainer = quiet_trainer(*callbacks, limit_train_batches=1)
    trainer.fit(module, loader(), loader())
    return weights_of(module), trainer.callback_metrics


CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


@pytest.mark.parametrize(
    ("loss", "smoothed_loss"),
    [
        (nn.CrossEntropyLoss(CLASS_WEIGHTS), nn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.1)),
        (nn.CrossEntropyLoss(ignore_index=0), nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1)),
        (
            lambda logits, labels: 2 * F.cross_entropy(logits, labels, reduction="none").square().mean(),
            lambda logits, labels: (
                2 * F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1).square().mean()
            ),
        ),
        (
            lambda logits, labels: F.nll_loss(logits.log_softmax(1), labels),
            nn.CrossEntropyLoss(label_smoothing=0.1),
        ),
    ],
    ids=["class weights", "ignored label", "no reduction", "log-probabilities"],
)
def test_is_what_the_loss_itself_would_do(loss, smoothed_loss):
    weights, metrics = fit(loss, LabelSmoothing(smoothing=0.1))
    expected, wanted = fit(smoothed_loss)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(metrics["train_loss"], wanted["train_loss"])
    assert metrics["val_loss"] > 0


def test_smoothing_of_one_makes_all_targets_equal():
    def uniform(logits, _):
        return F.cross_entropy(logits, torch.full_like(logits, 1 / logits.shape[1]))

    weights, _ = fit(F.cross_entropy, LabelSmoothing(smoothing=1.0))
    torch.testing.assert_close(weights, fit(uniform)[0])


def test_both_sides_of_a_mixture_are_smoothed_in_either_order():
    mixing, smoothing = BatchMixing(Mixup(alpha=0.7), seed=3), LabelSmoothing(smoothing=0.1)
    one, _ = fit(F.cross_entropy, mixing, smoothing)
    other, _ = fit(F.cross_entropy, LabelSmoothing(smoothing=0.1), BatchMixing(Mixup(alpha=0.7), seed=3))
    wanted, _ = fit(nn.CrossEntropyLoss(label_smoothing=0.1), BatchMixing(Mixup(alpha=0.7), seed=3))
    torch.testing.assert_close(one, wanted)
    torch.testing.assert_close(other, wanted)


def test_metrics_of_the_training_step_stay_as_they_are():
    seen = []

    def loss(logits, labels):
        with torch.no_grad():
            seen.append(F.cross_entropy(logits, labels))
        return F.cross_entropy(logits, labels)

    _, metrics = fit(loss, LabelSmoothing(smoothing=0.5))
    assert seen[0] != metrics["train_loss"]


def test_targets_that_are_probabilities_are_refused_where_there_are_no_others():
    def soft(logits, labels):
        return F.cross_entropy(logits, F.one_hot(labels, 3).float())

    with pytest.raises(SettingError, match="calls neither cross_entropy nor nll_loss with class indices"):
        fit(soft, LabelSmoothing(smoothing=0.1))


def test_a_loss_that_changes_in_the_course_of_a_fit_is_warned_of():
    def loss(logits, labels):
        if module.current_epoch == 0:
            return F.cross_entropy(logits, labels)
        return -logits.log_softmax(1).gather(1, labels[:, None]).mean()

    module = OfLoss(loss)
    with pytest.warns(UserWarning, match="does nothing in a training step that calls neither .* as in epoch 1") as told:
        quiet_trainer(LabelSmoothing(smoothing=0.1), max_epochs=3).fit(module, loader(), loader())
    assert len([warning for warning in told if "does nothing" in str(warning.message)]) == 1


def test_a_loss_that_smooths_by_itself_is_refused():
    with pytest.raises(SettingError, match=r"label_smoothing of the module's own loss must be 0 .*, but is 0.2"):
        fit(nn.CrossEntropyLoss(label_smoothing=0.2), LabelSmoothing(smoothing=0.1))


def test_a_module_that_is_compiled_as_a_whole_is_refused():
    module = torch.compile(SomebodysModule(), backend="eager")
    with pytest.raises(SettingError, match="must not be compiled as a whole with LabelSmoothing"):
        quiet_trainer(LabelSmoothing(smoothing=0.1)).fit(module, loader(), loader())


def test_a_loss_within_checkpointing_is_refused():
    def recomputed(logits, labels):
        return checkpoint(F.cross_entropy, logits, labels, use_reentrant=False)

    with pytest.raises(SettingError, match="the loss must be computed outside of activation checkpointing"):
        fit(recomputed, LabelSmoothing(smoothing=0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothing": 1.1}, r"smoothing must be in \[0, 1\], but is 1.1"),
        (
            {"smoothing": 0.6, "schedule": StrengthSchedule(end=2.0)},
            r"smoothing times the schedule's factor must be in \[0, 1\], but is 1.2",
        ),
        ({"smoothing": 0.1, "schedule": 0.5}, "schedule must be a StrengthSchedule"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        LabelSmoothing(**settings)


def test_the_problem_has_every_class():
    assert samples().tensors[1].unique().tolist() == [0, 1, 2]  # else a class weight or an ignored label meets nobody
