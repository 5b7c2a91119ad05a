"""Regression, somebody's networks, and what is written for programs, from the command line."""

import csv
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from sklearn.metrics import r2_score, root_mean_squared_error

from lightning_reg.cli.networks import fitting_network
from lightning_reg.data import TabularData
from lightning_reg.models import Supervised
from tests.cli.helpers import run
from tests.conftest import REPOSITORY

TABLE = str(REPOSITORY / "configs" / "tabular_mlp.yaml")
REGRESSION = str(REPOSITORY / "configs" / "tabular_regression.yaml")
RESNET = str(REPOSITORY / "configs" / "image_folder_resnet.yaml")


def predictions():
    with next(Path("runs").rglob("predictions.csv")).open() as file:
        return list(csv.DictReader(file))


def figures():
    return json.loads(next(Path("runs").rglob("metrics.json")).read_text())


def test_a_table_of_numbers_is_trained_on_measured_and_predicted_in_its_unit(capsys):
    options = ["--data.dataset", "diabetes"]
    assert run("fit", *options, config=TABLE) == 0
    printed = capsys.readouterr().out
    written = figures()
    assert set(written) == {"train", "validation", "test"}
    for name in ("mae", "rmse", "r2"):
        shown = re.search(rf"^{name} +(\S+) +(\S+) +(\S+)", printed, re.MULTILINE).groups()
        assert [float(value) for value in shown] == pytest.approx(
            [metrics[name] for metrics in written.values()], abs=1e-4
        )
    assert run("predict", *options, "--ckpt_path", "best", config=TABLE) == 0
    predicted = [float(row["prediction"]) for row in predictions()]
    data = TabularData(dataset="diabetes", val_size=0.15)
    data.setup("test")
    targets = torch.cat([batch[-1] for batch in data.test_dataloader()])
    assert written["test"]["rmse"] == pytest.approx(root_mean_squared_error(targets, predicted), rel=1e-4)
    assert written["test"]["r2"] == pytest.approx(r2_score(targets, predicted), abs=1e-4)


def test_figures_of_a_test_join_those_of_the_fit():
    assert run("fit") == 0
    before = figures()
    assert run("test", "--ckpt_path", "best") == 0
    assert figures() == before
    next(Path("runs").rglob("metrics.json")).write_text('{"train": {"loss": 1.0}}')
    assert run("test", "--ckpt_path", "best") == 0
    assert figures() == {"train": {"loss": 1.0}, "test": before["test"]}


@pytest.mark.parametrize("loss", ["huber", "gaussian"])
def test_predictions_of_many_passes_have_a_deviation(loss):
    options = ["--model.task.loss", loss]
    assert run("fit", *options, config=REGRESSION) == 0
    saved = yaml.safe_load(next(Path("runs").rglob("config.yaml")).read_text())
    assert saved["model"]["init_args"]["task"]["init_args"]["loss"] == loss
    assert run("predict", *options, "--ckpt_path", "best", "--prediction.samples", "5", config=REGRESSION) == 0
    assert all(float(row["prediction_std"]) > 0 for row in predictions())


def test_classes_of_many_passes_have_an_entropy():
    assert run("fit") == 0
    assert run("predict", "--ckpt_path", "best", "--prediction.samples", "5") == 0
    rows = predictions()
    assert list(rows[0]) == ["sample", "class", "probability", "std", "entropy", "mutual_information"]
    assert all(0 <= float(row["mutual_information"]) <= float(row["entropy"]) + 1e-6 for row in rows)
    assert all(float(row["entropy"]) <= math.log(10) + 1e-6 for row in rows)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ("0", "prediction.samples must be a whole number of at least 1, but is 0"),
        ("3", "model must have a layer that drops something"),
    ],
)
def test_passes_that_cannot_be_are_refused(samples, message, capsys):
    options = ["--model.drop_prob", "0"]
    assert run("fit", *options) == 0
    assert run("predict", *options, "--ckpt_path", "best", "--prediction.samples", samples) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.label_smoothing", "0.1"],
            "error: label_smoothing must be 0 for regression, which has no labels, but is 0.1",
        ),
        (
            ["--model", "Classifier", "--model.network", "torch.nn.Identity"],
            "error: num_classes must be given for classification; for 1 targets a sample, task must be regression",
        ),
        (
            ["--model", "Supervised", "--model.network", "torch.nn.Identity"],
            "error: network must return outputs (N, 1), as the data and the task need, but returns (N, 10)",
        ),
        (
            ["--model", "Supervised", "--model.network", "torchvision.models.resnet18"],
            "error: network must take inputs of the data's shape (N, 10), but ResNet fails on them: Expected",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_one_sentence_before_training(options, message, capsys, tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("seed_everything: 0\ndata: {class_path: TabularData, init_args: {dataset: diabetes}}\n")
    model = [] if "--model" in options else ["--model", "MLP"]
    assert run("fit", *model, *options, config=str(path)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert [path.name for path in Path().iterdir() if path.name != "table.yaml"] == []


def test_somebodys_network_has_as_many_outputs_as_the_data_has_classes(image_folder, capsys):
    root = image_folder(("train", "test"), classes=3, size=32)
    options = ["--data.root", str(root), "--data.val_size", "0.25", "--data.image_size", "32"]
    assert run("fit", *options, config=RESNET) == 0
    saved = yaml.safe_load(next(Path("runs").rglob("config.yaml")).read_text())
    assert saved["model"]["init_args"]["network"]["class_path"] == "torchvision.models.resnet18"
    assert run("test", *options, "--ckpt_path", "best", config=RESNET) == 0
    capsys.readouterr()
    assert run("fit", *options, "--model.network.num_classes", "7", config=RESNET) == 2
    error = "error: model.network.num_classes must be 3, as the data has it, or be left out, but is 7"
    assert capsys.readouterr().err.splitlines()[-1] == error


class Convolution(torch.nn.Sequential):
    """Somebody's, for images of three channels by default."""

    def __init__(self, in_channels: int = 3, num_classes: int = 1000):
        super().__init__(
            torch.nn.Conv2d(in_channels, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 6, num_classes)
        )


def test_channels_and_outputs_are_filled_in_where_they_are_named_so():
    options = ["--model", "Supervised", "--model.network", "tests.cli.test_tasks.Convolution"]
    assert run("fit", *options, "--trainer.callbacks", "null", config=digits_alone()) == 0
    model = Supervised(torch.nn.Identity(), num_targets=2, input_shape=(5, 8, 8))
    assert fitting_network("torch.nn.Identity", model) is None


TIMMS = """
import torch

def narrow(pretrained: bool = False, **kwargs) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(kwargs.get("in_chans", 3), 2, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(72, kwargs.get("num_classes", 9)),
    )

def wide(num_classes: int = 1000, **kwargs) -> torch.nn.Module:
    return narrow(num_classes=num_classes, **kwargs)
"""


def test_timms_functions_are_handed_channels_and_outputs_that_they_do_not_name(tmp_path, monkeypatch, capsys):
    package = tmp_path / "packages" / "timm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TIMMS)
    monkeypatch.syspath_prepend(package.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    options = ["--model", "Supervised", "--trainer.max_epochs", "1", "--model.network"]
    for name in ("timm.narrow", "timm.wide"):
        assert run("fit", *options, name, config=digits_alone()) == 0
    capsys.readouterr()
    assert run("fit", *options, "timm.narrow", "--model.network.dict_kwargs.in_chans", "2", config="digits.yaml") == 2
    error = "error: model.network.in_chans must be 1, as the data has it, or be left out, but is 2"
    assert capsys.readouterr().err.splitlines()[-1] == error
    sys.modules.pop("timm")


def digits_alone():
    Path("digits.yaml").write_text("seed_everything: 0\ndata: {class_path: ImageData, init_args: {dataset: digits}}\n")
    return "digits.yaml"


def test_a_task_that_the_model_is_told_by_name_is_no_contradiction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(REPOSITORY / "configs" / "tabular_regression.yaml")
    assert run("fit", "--model.task", "regression", "--trainer.max_epochs", "1", config=config) == 0


def test_validation_may_be_due_by_time():
    assert run("fit", "--trainer.val_check_interval", "00:00:00:01") == 0
