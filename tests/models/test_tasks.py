"""Each task against scikit-learn's metrics and losses written out by hand, in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from sklearn import metrics as oracle
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_reg.models import CNN, MLP, RNN, Classification, Classifier, Multilabel, Regression, Supervised
from lightning_reg.models import TransformerClassifier as Transformer
from lightning_reg.models.tasks import Task
from lightning_reg.nn import Dropout
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer

FEATURES = 5


def inputs(count, seed=0):
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


def numbers(count, targets=1, seed=1):
    """In a unit in which 32-bit sums of squares lose the variance."""
    drawn = torch.randn(count, targets, generator=torch.Generator().manual_seed(seed))
    signal = inputs(count)[:, :targets]
    return (1e5 + 300 * torch.arange(1, targets + 1) * (signal + 0.5 * drawn)).squeeze(1)


def labels(count, many=4, seed=2):
    return (
        torch.rand(count, many, generator=torch.Generator().manual_seed(seed)) < torch.linspace(0.2, 0.6, many)
    ).float()


def classes(count, seed=3):
    return torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), count, True, generator=torch.Generator().manual_seed(seed))


def loader(*tensors, batch_size=8):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def model(**settings):
    torch.manual_seed(0)
    return MLP(**{"input_shape": (FEATURES,), "hidden_sizes": [16], **settings})


def fitted(module, x, y, epochs=3, **settings):
    trainer = quiet_trainer(max_epochs=epochs, **settings)
    trainer.fit(module, loader(x, y), loader(x, y))
    return trainer


def validated(module, x, y, batch_size=8):
    return quiet_trainer().validate(module, loader(x, y, batch_size=batch_size), verbose=False)[0]


def outputs_of(module, x):
    module.eval()
    with torch.no_grad():
        return module(x).double()


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_classification_is_measured_as_by_scikit_learn(batch_size):
    x, y = inputs(150), classes(150)
    module = model(num_classes=3)
    results = validated(module, x, y, batch_size)
    logits = outputs_of(module, x)
    predicted = logits.argmax(1)
    assert results["val/accuracy"] == pytest.approx(oracle.accuracy_score(y, predicted))
    assert results["val/balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(y, predicted))
    assert results["val/loss"] == pytest.approx(oracle.log_loss(y, logits.softmax(1)), rel=1e-5)


def test_balanced_accuracy_leaves_out_classes_that_do_not_occur():
    x, y = inputs(60), classes(60) % 2
    module = model(num_classes=3)
    predicted = outputs_of(module, x).argmax(1)
    assert (predicted == 2).any()
    results = validated(module, x, y)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = oracle.balanced_accuracy_score(y, predicted)
    assert results["val/balanced_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("batch_size", [7, 200])
def test_regression_is_measured_in_the_targets_unit_as_by_scikit_learn(targets, batch_size):
    x, y = inputs(100), numbers(100, targets)
    module = model(num_targets=targets)
    fitted(module, x, y)
    results = validated(module, x, y, batch_size)
    (predicted,) = quiet_trainer().predict(module, loader(x, y, batch_size=100))
    assert predicted.shape == y.shape
    for name, expected in (
        ("mae", oracle.mean_absolute_error(y, predicted)),
        ("rmse", oracle.root_mean_squared_error(y.double(), predicted.double())),
        ("r2", oracle.r2_score(y.double(), predicted.double())),
    ):
        assert results[f"val/{name}"] == pytest.approx(expected, rel=2e-4), name


def test_predictions_are_the_outputs_in_the_targets_unit():
    x, y = inputs(100), numbers(100, 2)
    module = model(num_targets=2)
    fitted(module, x, y)
    (predicted,) = quiet_trainer().predict(module, loader(x, y, batch_size=100))
    values = y.double().numpy()
    expected = values.mean(0) + values.std(0) * outputs_of(module, x).numpy()
    np.testing.assert_allclose(predicted, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber", "gaussian"])
@pytest.mark.parametrize("targets", [1, 2])
def test_regression_losses_are_the_textbooks(loss, targets):
    x, y = inputs(64), numbers(64, targets)
    module = model(num_targets=targets, task=Regression(loss=loss, delta=0.7))
    fitted(module, x, y)
    outputs = outputs_of(module, x).numpy()
    values = y.double().numpy().reshape(64, targets)
    wanted = (values - values.mean(0)) / values.std(0)
    error = outputs[:, :targets] - wanted
    if loss == "gaussian":
        variance = np.log1p(np.exp(outputs[:, targets:])) + 1e-6
        expected = 0.5 * (np.log(variance) + error**2 / variance).mean()
    else:
        huber = np.where(abs(error) < 0.7, 0.5 * error**2, 0.7 * (abs(error) - 0.35))
        expected = {"squared": error**2, "absolute": abs(error), "huber": huber}[loss].mean()
    assert validated(module, x, y)["val/loss"] == pytest.approx(expected, rel=1e-3)


def test_several_labels_are_measured_as_by_scikit_learn():
    x, y = inputs(90), labels(90)
    module = model(num_targets=4, task="multilabel")
    results = validated(module, x, y)
    probabilities = outputs_of(module, x).sigmoid()
    binary = -(y * probabilities.log() + (1 - y) * (1 - probabilities).log()).mean()
    assert results["val/loss"] == pytest.approx(binary.item(), rel=1e-5)
    assert results["val/f1"] == pytest.approx(oracle.f1_score(y, probabilities > 0.5, average="macro"))
    assert results["val/mean_average_precision"] == pytest.approx(
        oracle.average_precision_score(y, probabilities, average="macro"), rel=1e-5
    )


def test_label_smoothing_of_labels_moves_them_towards_a_half():
    task = Multilabel(label_smoothing=0.2)
    task.build(num_classes=None, num_targets=4)
    logits, y = torch.randn(8, 4, dtype=torch.float64), labels(8).double()
    wanted = torch.where(y == 1, 0.9, 0.1)
    p = logits.sigmoid()
    expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
    torch.testing.assert_close(task.loss(logits, y), expected)


def test_balanced_class_weights_are_scikit_learns_and_act_in_training_alone():
    x, y = inputs(120), classes(120)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=y.numpy())
    module = model(task=Classification(class_weights="balanced"), num_classes=3, optimizer=still)
    trainer = fitted(module, x, y, epochs=1)
    logits = outputs_of(module, x)
    losses = -logits.log_softmax(1)[torch.arange(120), y].numpy()
    by_batch = [
        np.average(losses[start : start + 8], weights=weights[y[start : start + 8]]) for start in range(0, 120, 8)
    ]
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(np.mean(by_batch), rel=1e-5)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(losses.mean(), rel=1e-5)


def test_weights_of_labels_are_absent_over_present():
    x, y = inputs(120), labels(120)
    module = model(task=Multilabel(class_weights="balanced"), num_targets=4, optimizer=still)
    trainer = fitted(module, x, y, epochs=1)
    p = outputs_of(module, x).sigmoid()
    weights = (120 - y.sum(0)) / y.sum(0)
    expected = -(weights * y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_by_hand_must_be_one_a_class():
    with pytest.raises(SettingError, match="class_weights must have 3 entries, one for each class, but has 2"):
        model(task=Classification(class_weights=[1.0, 2.0]), num_classes=3)
    with pytest.raises(SettingError, match=r"each of class_weights must be in \(0, ∞\), but is 0"):
        Classification(class_weights=[1.0, 0.0])


def still(params):
    return torch.optim.SGD(params, lr=0.0)


def test_training_metrics_are_the_means_of_what_was_trained_on():
    x, y = inputs(21), classes(21)
    module = model(num_classes=3, optimizer=still)
    trainer = fitted(module, x, y, epochs=2)
    logits = outputs_of(module, x)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(
        oracle.log_loss(y, logits.softmax(1)), rel=1e-5
    )
    assert trainer.callback_metrics["train/accuracy"].item() == pytest.approx(
        (logits.argmax(1) == y).double().mean().item()
    )


def test_metrics_of_many_small_batches_are_handed_over_in_between():
    """More than the 64 batches that are kept."""
    x, y = inputs(300), classes(300)
    module = model(num_classes=3, optimizer=still)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(x, y, batch_size=2), loader(x, y))
    predicted = outputs_of(module, x).argmax(1)
    assert trainer.callback_metrics["train/accuracy"].item() == pytest.approx(oracle.accuracy_score(y, predicted))


def test_a_loss_that_is_no_number_is_reported_as_such():
    x, y = inputs(20), classes(20)
    x[11] = math.nan
    assert math.isnan(validated(model(num_classes=3), x, y)["val/loss"])


def test_indices_and_probabilities_in_one_epoch_are_measured_together():
    x, y = inputs(16), classes(16)
    module = model(num_classes=3)
    batches = [(x[:8], y[:8]), (x[8:], nn.functional.one_hot(y[8:], 3).float())]
    results = quiet_trainer().validate(module, DataLoader(batches, batch_size=None), verbose=False)[0]
    assert results["val/accuracy"] == pytest.approx(oracle.accuracy_score(y, outputs_of(module, x).argmax(1)))


def test_standardization_is_the_training_parts_and_stays_with_the_weights(tmp_path):
    x, y = inputs(80), numbers(80)
    module = model(num_targets=1)
    trainer = fitted(module, x, y)
    assert module.task.mean.item() == pytest.approx(y.double().mean().item(), rel=1e-6)
    assert module.task.std.item() == pytest.approx(y.double().std(correction=0).item(), rel=1e-5)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    torch.load(tmp_path / "model.ckpt", weights_only=True)
    again = MLP.load_from_checkpoint(tmp_path / "model.ckpt")
    assert validated(again, x, y) == validated(module, x, y)
    fitted(again, x, 3 * y, epochs=1)
    assert again.task.mean.item() == module.task.mean.item()


def test_weights_from_before_the_standardization_are_standardized_by_the_next_fit():
    """A learning rate finder fits, and then restores what there was before."""
    x, y = inputs(80), numbers(80)
    module = model(num_targets=1)
    before = copy.deepcopy(module.state_dict())
    fitted(module, x, y, epochs=1)
    module.load_state_dict(before)
    fitted(module, x, y, epochs=1)
    assert module.task.mean.item() == pytest.approx(y.mean().item(), rel=1e-6)


def test_a_constant_target_is_centered_alone():
    x, y = inputs(40), torch.full((40,), 7.0)
    module = model(num_targets=1)
    trainer = fitted(module, x, y, epochs=1)
    assert module.task.std.item() == 1
    assert trainer.callback_metrics["train/loss"].isfinite()


class KnowsTargets(LightningDataModule):
    def __init__(self, x, y):
        super().__init__()
        self.tensors = x, y

    def train_dataloader(self):
        return loader(self.tensors[0], self.tensors[1] + 1e6)

    def val_dataloader(self):
        return loader(*self.tensors)

    def training_targets(self):
        return self.tensors[1]


def test_a_data_module_that_knows_its_targets_is_asked():
    module = model(num_targets=1)
    y = numbers(40)
    quiet_trainer(max_epochs=1).fit(module, datamodule=KnowsTargets(inputs(40), y))
    assert module.task.mean.item() == pytest.approx(y.mean().item(), rel=1e-6)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield inputs(1)[0], torch.tensor(0.0)


def test_targets_without_an_end_are_refused():
    endless, validation = DataLoader(Endless(), batch_size=4), loader(inputs(8), numbers(8))
    with pytest.raises(SettingError, match="the training loader must know its length where targets are standardized"):
        quiet_trainer(max_steps=2).fit(model(num_targets=1), endless, validation)
    module = model(num_targets=1, task=Regression(standardize=False))
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(module, endless, validation)
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_collecting_targets_leaves_the_order_of_training_alone():
    x, y = inputs(40), numbers(40)

    def weights(task):
        module = model(num_targets=1, task=task)
        torch.manual_seed(7)
        shuffled = DataLoader(TensorDataset(x, (y - y.mean()) / y.std(correction=0)), batch_size=8, shuffle=True)
        quiet_trainer(max_epochs=1).fit(module, shuffled, loader(x, y))
        return module.network[-1].weight.detach()

    torch.testing.assert_close(weights(Regression()), weights(Regression(standardize=False)), rtol=1e-4, atol=1e-5)


def test_gaussian_predictions_have_a_deviation_in_the_targets_unit():
    x, y = inputs(64), numbers(64)
    module = model(num_targets=1, task=Regression(loss="gaussian"))
    fitted(module, x, y)
    (predicted,) = quiet_trainer().predict(module, loader(x, y, batch_size=64))
    raw = outputs_of(module, x)[:, 1]
    expected = y.double().std(correction=0) * (raw.exp().log1p() + 1e-6).sqrt()
    torch.testing.assert_close(predicted.std.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", ["squared", "gaussian"])
def test_stochastic_passes_and_noise_add_up(loss):
    """Mean and variance of many passes against those of passes by hand, from the same random numbers."""
    x, y = inputs(16), numbers(16)
    module = model(num_targets=1, task=Regression(loss=loss), drop_prob=0.4)
    fitted(module, x, y)
    module.predict_samples = 50
    module.eval()
    torch.manual_seed(5)
    predicted = module.predict_step((x, y), 0)
    next(layer for layer in module.network if isinstance(layer, Dropout)).train()
    torch.manual_seed(5)
    with torch.no_grad():
        passes = torch.stack([module.network(x) for _ in range(50)]).double()
    mean, std = y.double().mean(), y.double().std(correction=0)
    values = mean + std * passes[..., 0]
    variance = values.var(0, correction=0)
    if loss == "gaussian":
        variance = variance + (std**2 * (passes[..., 1].exp().log1p() + 1e-6)).mean(0)
    assert (predicted.std > 0).all()
    torch.testing.assert_close(predicted.value.double(), values.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(predicted.std.double(), variance.sqrt(), rtol=1e-3, atol=0.05)
    assert predicted.entropy is None


def test_stochastic_passes_of_classes_have_an_entropy():
    module = model(num_classes=3, drop_prob=0.5)
    module.predict_samples = 20
    (predicted,) = quiet_trainer().predict(module, loader(inputs(16), classes(16), batch_size=16))
    mean = predicted.value.double()
    torch.testing.assert_close(mean.sum(1), torch.ones(16).double())
    torch.testing.assert_close(predicted.entropy.double(), -(mean * mean.log()).sum(1))
    assert (predicted.mutual_information > 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda **task: MLP(input_shape=(1, 8, 8), hidden_sizes=[8], **task),
        lambda **task: CNN(input_shape=(1, 8, 8), channels=[4], **task),
        lambda **task: RNN(input_shape=(1, 8, 8), hidden_size=8, **task),
        lambda **task: Transformer(input_shape=(1, 8, 8), embed_dim=8, depth=1, num_heads=2, **task),
        lambda **task: Supervised(lambda outputs: nn.Sequential(nn.Flatten(), nn.Linear(64, outputs)), **task),
    ],
    ids=["mlp", "cnn", "rnn", "transformer", "any"],
)
@pytest.mark.parametrize(
    ("settings", "targets", "shape"),
    [
        ({"num_classes": 3}, classes(24), (24, 3)),
        ({"num_targets": 1}, numbers(24), (24,)),
        ({"num_targets": 2}, numbers(24, 2), (24, 2)),
        ({"num_targets": 4, "task": "multilabel"}, labels(24), (24, 4)),
    ],
    ids=["classes", "number", "numbers", "labels"],
)
def test_every_network_does_every_task(make, settings, targets, shape):
    module = make(**settings)
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    trainer = fitted(module, x, targets, epochs=1)
    assert all(value.isfinite() for value in trainer.callback_metrics.values())
    (predicted,) = trainer.predict(module, loader(x, targets, batch_size=24))
    assert predicted.shape == shape


class AbsoluteRank(Regression):
    """A task of one's own."""

    def loss(self, outputs, targets):
        return (outputs.squeeze(1) - targets).abs().max()


def test_a_task_of_ones_own_is_trained_on():
    x, y = inputs(32), numbers(32)
    module = model(task=AbsoluteRank(standardize=False), num_targets=1, optimizer=still)
    trainer = fitted(module, x, y, epochs=1)
    errors = (outputs_of(module, x)[:, 0] - y).abs().reshape(4, 8).amax(1)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(errors.mean().item(), rel=1e-6)


def test_two_models_share_no_task():
    task = Regression()
    first, second = model(task=task, num_targets=1), model(task=task, num_targets=1)
    fitted(first, inputs(32), numbers(32), epochs=1)
    assert second.task.mean.item() == 0
    assert isinstance(task, Task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "num_classes or num_targets must be given"),
        ({"task": "classification", "num_targets": 2}, "num_classes must be given for classification; for 2 targets"),
        ({"task": "regression", "num_classes": 2}, "num_targets must be given for regression"),
        ({"task": "regresion", "num_targets": 2}, "task must be one of .*did you mean 'regression'"),
        ({"num_targets": 0}, "num_targets must be a whole number of at least 1"),
        ({"num_targets": 1, "label_smoothing": 0.1}, "label_smoothing must be 0 for regression, .*, but is 0.1"),
        (
            {"num_classes": 3, "label_smoothing": 0.1, "task": Classification()},
            "label_smoothing must be left out where task has settings of its own",
        ),
    ],
)
def test_tasks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        model(**settings)


def test_bad_settings_of_a_task_are_refused():
    with pytest.raises(SettingError, match="loss must be one of squared, absolute, huber, gaussian, but is 'hubert'"):
        Regression(loss="hubert")
    with pytest.raises(SettingError, match=r"delta must be in \(0, ∞\), but is 0"):
        Regression(delta=0)
    with pytest.raises(SettingError, match="class_weights must be one of balanced, but is 'balancd'"):
        Multilabel(class_weights="balancd")


def test_a_classifier_classifies():
    with pytest.raises(SettingError, match="task must be classification for Classifier, but is Regression"):
        Classifier(nn.Linear(5, 1), num_targets=1, task="regression")


def test_in_16_bits_predictions_keep_the_targets_unit():
    x, y = inputs(64), numbers(64)
    module = model(num_targets=1)
    trainer = fitted(module, x, y, precision="bf16-mixed")
    measured = trainer.callback_metrics["val/rmse"].item()
    predicted = torch.cat(trainer.predict(module, loader(x, y)))
    assert predicted.dtype == torch.float32
    assert measured == pytest.approx(oracle.root_mean_squared_error(y, predicted), rel=1e-2)
