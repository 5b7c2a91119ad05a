"""What is kept of a run, against what torch says of it."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_reg.data import ImageData
from lightning_reg.models import MLP
from lightning_reg.settings import SettingError
from lightning_reg.studies.collectors import (
    ActivationRecorder,
    LearningCurves,
    curves_of,
    predictions_of,
    reload_of,
    weights_of,
)


def quiet_trainer(epochs, *callbacks, **settings):
    return Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def digits():
    return ImageData(dataset="digits", batch_size=64, train_size=100)


def mlp():
    torch.manual_seed(0)
    return MLP(input_shape=(1, 8, 8), num_classes=10, hidden_sizes=[16])


def test_weights_are_counted_in_bins_whose_middle_one_holds_zero():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    values = [0.0, 0.0, 0.011, -0.5, 3.0, -7.0]
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor(values).view(2, 3))
    found = weights_of(module)
    assert len(found["edges"]) == 82
    assert (found["edges"][0], found["edges"][-1]) == (-1, 1)
    expected = [0] * 81
    for value in values:
        inside = max(-0.999, min(0.999, value))
        expected[next(i for i in range(81) if found["edges"][i] <= inside < found["edges"][i + 1])] += 1
    assert found["counts"] == expected
    assert found["counts"][40] == 3
    assert found["zero_fraction"] == pytest.approx(2 / 6)
    assert found["parameters"] == 6
    assert found["norm"] == pytest.approx(sum(value**2 for value in values) ** 0.5, rel=1e-6)
    assert weights_of(nn.ReLU())["parameters"] == 0


def test_activations_are_those_of_the_layers_with_matrices():
    recorder, model, data = ActivationRecorder(), mlp(), digits()
    reference = mlp()
    quiet_trainer(6, recorder).fit(model, datamodule=data)  # 12 steps
    found = recorder.collected()
    assert found["steps"] == list(range(12))
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    assert list(found["layers"]) == linear
    # The first step is that of the initial weights, on the first batch.
    fresh = digits()
    fresh.setup("fit")
    inputs, _ = fresh.on_after_batch_transfer(next(iter(fresh.train_dataloader())), 0)
    first = dict(reference.named_modules())[linear[0]](inputs.flatten(1))
    assert found["layers"][linear[0]]["mean"][0] == pytest.approx(first.mean().item(), abs=1e-5)
    assert found["layers"][linear[0]]["std"][0] == pytest.approx(first.std(correction=0).item(), rel=1e-4)
    assert all(len(values) == 12 for entry in found["layers"].values() for values in entry.values())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_long_fit_is_measured_at_first_and_then_now_and_again():
    recorder = ActivationRecorder()
    quiet_trainer(75, recorder, limit_val_batches=0).fit(mlp(), datamodule=digits())  # 150 steps
    assert recorder.collected()["steps"] == [*range(10), *range(12, 150, 3)]


def test_hooks_are_gone_after_an_error():
    class Stop(ActivationRecorder):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            raise RuntimeError("stop")

    model = mlp()
    with pytest.raises(RuntimeError, match="stop"):
        quiet_trainer(1, Stop()).fit(model, datamodule=digits())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_curves_have_training_and_validation_of_every_epoch():
    curves = LearningCurves()
    trainer = quiet_trainer(3, curves)
    model, data = mlp(), digits()
    trainer.fit(model, datamodule=data)
    found = curves_of(curves)
    names = ("loss", "accuracy", "balanced_accuracy")
    assert set(found) == {f"{split}/{name}" for split in ("train", "validation") for name in names}
    assert all([epoch for epoch, _ in curve] == [0.0, 1.0, 2.0] for curve in found.values())
    last = trainer.validate(model, datamodule=data, verbose=False)[0]
    assert found["validation/loss"][-1][1] == pytest.approx(last["val/loss"], rel=1e-5)


def test_a_fit_without_validation_has_no_curves():
    curves = LearningCurves()
    quiet_trainer(1, curves, limit_val_batches=0).fit(mlp(), datamodule=digits())
    assert curves_of(curves) == {}


def test_reloaded_predictions_are_compared():
    before = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert reload_of(before, before.clone()) == {"largest_difference": 0.0, "samples": 2, "same_classes": True}
    other = reload_of(before, torch.tensor([[0.9, 0.1], [0.55, 0.45]]))
    assert other["largest_difference"] == pytest.approx(0.15)
    assert not other["same_classes"]
    assert not reload_of(torch.tensor([1.0]), torch.tensor([1.5]))["same_classes"]
    with pytest.raises(SettingError, match=r"one shape .* \(2, 2\) and \(1, 2\)"):
        reload_of(before, before[:1])


def test_predictions_are_classes():
    found = predictions_of(torch.tensor([1, 0]), torch.tensor([[0.1, 0.9], [0.2, 0.8]]))
    assert found == {"targets": [1, 0], "classes": [1, 1]}


def test_predictions_of_numbers_are_numbers_and_of_several_labels_one_by_one():
    numbers = predictions_of(torch.tensor([1.5, 2.0]), torch.tensor([1.0, 2.5]), "regression")
    assert numbers == {"targets": [1.5, 2.0], "values": [1.0, 2.5]}
    labels = predictions_of(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.2, 0.9]]), "multilabel")
    assert labels == {"targets": [1, 0], "classes": [0, 1]}
