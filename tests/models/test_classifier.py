from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.models import CNN, MLP, Classifier
from lightning_reg.models.checkpoints import check_fits
from lightning_reg.models.tasks import Classification
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer


def samples(count=24, shape=(1, 8, 8), classes=3):
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return inputs, torch.arange(count) % classes


def loader(*tensors, batch_size=8):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def fit(module, batches, **settings):
    trainer = quiet_trainer(**settings)
    trainer.fit(module, batches, batches)
    return trainer


def mlp(**settings):
    torch.manual_seed(0)
    return MLP(**{"input_shape": (1, 8, 8), "num_classes": 3, "hidden_sizes": [16], **settings})


def test_loss_is_cross_entropy_with_label_smoothing():
    module = mlp(label_smoothing=0.2)
    inputs, labels = samples(8)
    expected = F.cross_entropy(module(inputs), labels, label_smoothing=0.2)
    trainer = fit(module, loader(inputs, labels))
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], expected.detach())


def test_probabilities_of_one_class_are_hard_labels():
    inputs, labels = samples()
    metrics = []
    for targets in (labels, F.one_hot(labels, 3).float()):
        trainer = fit(mlp(), loader(inputs, targets))
        metrics.append([trainer.callback_metrics[name].item() for name in ("train/loss", "train/accuracy")])
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6)


def test_accuracy_of_soft_targets_is_that_of_the_dominant_class():
    """Micro accuracy of torchmetrics silently gives 0 for soft targets."""
    inputs, labels = samples()
    soft = 0.4 / 3 + 0.6 * F.one_hot(labels, 3).float()
    module = mlp()
    expected = (module(inputs).argmax(1) == labels).float().mean()
    trainer = fit(module, loader(inputs, soft, batch_size=24), limit_train_batches=1)
    assert trainer.callback_metrics["train/accuracy"] == pytest.approx(expected.item())
    assert expected > 0


def test_validation_is_without_smoothing_and_over_uneven_batches():
    module = mlp(label_smoothing=0.3)
    inputs, labels = samples(21)
    module.eval()
    expected = F.cross_entropy(module(inputs), labels)
    results = quiet_trainer().validate(module, loader(inputs, labels), verbose=False)[0]
    assert results["val/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert results["val/accuracy"] == pytest.approx((module(inputs).argmax(1) == labels).float().mean().item())


def test_prediction_is_probabilities():
    inputs, labels = samples(5)
    (probabilities,) = quiet_trainer().predict(mlp(), loader(inputs, labels))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))


def test_weight_decay_leaves_out_norms_and_biases():
    module = mlp(norm="batch", weight_decay=0.3)
    groups = {group["name"]: group for group in module.configure_optimizers().param_groups}
    assert groups["decay"]["weight_decay"] == 0.3
    assert groups["no_decay"]["weight_decay"] == 0.0
    assert all(parameter.ndim == 2 for parameter in groups["decay"]["params"])


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1),
        partial(ReduceLROnPlateau, monitor="val/accuracy", patience=0, eps=0, factor=0.1, mode="min"),
        partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, eps=0, factor=0.1, mode="max"),
    ],
    ids=["step", "plateau", "torchs_plateau"],
)
def test_scheduler_is_stepped_once_an_epoch(scheduler):
    module = mlp(lr_scheduler=scheduler, optimizer=lambda params: torch.optim.SGD(params, lr=1e-9))
    trainer = fit(module, loader(*samples()), max_epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] < 2e-10


def test_compiling_is_asked_of_torch(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self)))
    mlp()
    assert compiled == []
    mlp(compile=True)
    assert compiled == [nn.Sequential]


@pytest.mark.parametrize("make", [MLP, CNN])
def test_compiled_network_trains_and_keeps_the_names_of_its_weights(make):
    plain = make(input_shape=(1, 8, 8), num_classes=3)
    module = make(input_shape=(1, 8, 8), num_classes=3, compile=True)
    module.network.compile(backend="aot_eager")  # inductor needs a compiler for C++
    fit(module, loader(*samples()), max_steps=2)
    assert list(module.state_dict()) == list(plain.state_dict())
    torch._dynamo.reset()


def test_any_network_can_be_classified_with():
    module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), num_classes=3)
    trainer = fit(module, loader(*samples()))
    assert "train/accuracy" in trainer.callback_metrics


@pytest.mark.parametrize(
    "settings", [{}, {"norm": nn.LayerNorm, "optimizer": lambda params: torch.optim.SGD(params, lr=0.1)}]
)
def test_checkpoint_loads_without_trusting_code(tmp_path, settings):
    """Callables among the hyperparameters would make every resume fail."""
    module = mlp(drop_prob=0.25, **settings)
    trainer = fit(module, loader(*samples()))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    torch.load(tmp_path / "model.ckpt", weights_only=True)
    loaded = MLP.load_from_checkpoint(tmp_path / "model.ckpt", norm=settings.get("norm", "none"))
    assert loaded.hparams["drop_prob"] == 0.25
    inputs = samples()[0]
    assert torch.equal(loaded.eval()(inputs), module.eval()(inputs))


def test_checkpoint_of_another_model_is_refused_in_one_sentence(tmp_path):
    trainer = fit(mlp(), loader(*samples()))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    path = tmp_path / "model.ckpt"
    message = r"'network.3.weight' is \(3, 16\) in the checkpoint and \(4, 16\) in the model \(and 1 more\)"
    with pytest.raises(SettingError, match=message):
        quiet_trainer().test(mlp(num_classes=4), loader(*samples()), ckpt_path=path)
    with pytest.raises(SettingError, match=r"model.hidden_sizes must be \[16\], as in the checkpoint, but is \[8\]"):
        quiet_trainer().test(mlp(hidden_sizes=[8]), loader(*samples()), ckpt_path=path)


def test_entries_that_only_one_side_has_are_named():
    with pytest.raises(SettingError, match=r"'bias' is absent in the checkpoint and \(4,\) in the model"):
        check_fits({"weight": torch.zeros(4, 2)}, nn.Linear(2, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": 5}, "network must be a module, or a function from the number of outputs to one, but is 5"),
        ({"optimizer": "adam"}, "optimizer must be a function from parameter groups to an optimizer, but is 'adam'"),
        ({"lr_scheduler": 5}, "lr_scheduler must be a function from an optimizer to .* scheduler, but is 5"),
    ],
)
def test_what_can_not_be_called_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        Classifier(**{"network": nn.Linear(4, 3), "num_classes": 3, **settings})


def test_class_weights_that_are_no_list_are_refused():
    with pytest.raises(SettingError, match="class_weights must be a list, but is 5"):
        Classification(class_weights=5)


def test_batch_of_one_with_batch_norm_is_refused_with_a_remedy():
    with pytest.raises(SettingError, match=r"batch_size must leave at least 2 samples.*norm 'layer' or 'group'"):
        fit(mlp(norm="batch"), loader(*samples(9)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.1}, r"label_smoothing must be in \[0, 1\]"),
        ({"weight_decay": -0.1}, r"weight_decay must be in \[0, ∞\)"),
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2"),
        ({"norm": "instance"}, "norm 'instance' needs positions"),
        ({"drop_prob": -0.1}, r"drop_prob must be in \[0, 1\]"),
        ({"init": "xavier"}, "init must be one of"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        mlp(**settings)


def test_batch_of_one_is_fine_where_images_have_many_positions():
    module = CNN(input_shape=(1, 8, 8), num_classes=3, channels=[4])
    assert fit(module, loader(*samples(3), batch_size=1)).global_step == 3


def test_checkpoint_can_be_loaded_loosely_in_python(tmp_path):
    trainer = fit(mlp(), loader(*samples()))
    trainer.save_checkpoint(tmp_path / "model.ckpt")

    class WithHead(MLP):
        def __init__(self, **settings):
            super().__init__(input_shape=(1, 8, 8), num_classes=3, hidden_sizes=[16])
            self.head = nn.Linear(3, 3)

    with pytest.warns(UserWarning, match="head.weight"):
        loaded = WithHead.load_from_checkpoint(tmp_path / "model.ckpt", strict=False)
    assert torch.equal(loaded.network[1].weight, trainer.lightning_module.network[1].weight)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("make", [MLP, CNN])
def test_other_precisions_train(make, precision):
    trainer = fit(make(input_shape=(1, 8, 8), num_classes=3), loader(*samples()), precision=precision, max_steps=2)
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_lsuv_scales_the_weights_by_the_first_batch_and_only_then():
    module = mlp(init="lsuv", hidden_sizes=[16, 16], optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    inputs, labels = samples()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(inputs, labels), loader(inputs, labels))
    outputs = inputs[:8]
    for layer in module.network:
        outputs = layer(outputs)
        if isinstance(layer, nn.Linear):
            assert outputs.var(correction=0).item() == pytest.approx(1, abs=0.05)
    trained = [parameter.clone() for parameter in module.parameters()]
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader(5 * inputs, labels), loader(inputs, labels))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), trained, strict=True))
