"""Tables from the command line."""

import csv
import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule

from lightning_reg.cli import main
from lightning_reg.data import TabularData
from tests.cli.helpers import run
from tests.conftest import REPOSITORY

CONFIG = str(REPOSITORY / "configs" / "tabular_mlp.yaml")


class Linear(LightningModule):
    """Somebody's regression."""

    def __init__(self, input_shape: tuple[int, ...]):
        super().__init__()
        self.layer = torch.nn.Linear(input_shape[0], 1)

    def training_step(self, batch, batch_idx):
        return (self.layer(batch[0]).squeeze(1) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture
def own_table():
    """Options for a table of one's own, whose label is the shape of the leaf."""
    shapes = ["round", "long", "cut"]
    lines = [f"{row * 37 % 100},{shapes[row % 3]},{row % 3}" for row in range(120)]
    Path("leaves.csv").write_text("\n".join(["length,shape,kind", *lines]))
    return ["--data.dataset", "null", "--data.path", "leaves.csv", "--data.target", "kind"]


@pytest.mark.parametrize("categorical", ["one_hot", "embed"])
@pytest.mark.parametrize("mix", [[], ["--data.mix", "Mixup"]], ids=["plain", "mixup"])
def test_own_table_is_trained_on_measured_and_predicted(own_table, categorical, mix, capsys):
    options = [*own_table, "--data.categorical", categorical, *mix]
    assert run("fit", *options, config=CONFIG) == 0
    assert re.search(r"accuracy( +-?\d+\.\d\d %){4}", capsys.readouterr().out)
    assert run("test", *options, "--ckpt_path", "best", config=CONFIG) == 0
    assert run("predict", *options, "--ckpt_path", "best", config=CONFIG) == 0
    with next(Path("runs").rglob("predictions.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert {row["class"] for row in rows} <= {"0", "1", "2"}
    assert all(0 <= int(row["sample"]) < 120 for row in rows)


def test_categories_given_by_hand_must_be_the_datas(own_table, capsys):
    options = [*own_table, "--data.categorical", "embed", "--model.categories", "[9]"]
    assert run("fit", *options, config=CONFIG) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: model.categories must be [4], as the data has it, or be left out, but is [9]"


class Classes(LightningModule):
    """Somebody's classifier."""

    def __init__(self, num_classes: int):
        super().__init__()


def test_somebodys_classifier_is_no_model_for_regression(capsys):
    options = ["--model", "tests.cli.test_tables.Classes", "--data", "TabularData", "--data.dataset", "diabetes"]
    assert main(["fit", *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match("error: model must predict numbers for this data, but is tests.cli.test_tables.Classes", error)


def test_unusable_table_is_one_sentence_and_nothing_half_written(own_table, capsys):
    with Path("leaves.csv").open("a") as file:
        file.write("\n1,round")
    assert run("fit", *own_table, config=CONFIG) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: leaves.csv must have 3 fields in every line, as in the first, but line 122 has 2"
    assert [path.name for path in Path().iterdir()] == ["leaves.csv"]


def test_regression_by_somebodys_module_is_predicted_as_numbers():
    config = Path("config.yaml")
    config.write_text(
        "data: {class_path: TabularData, init_args: {dataset: diabetes}}\n"
        "model: {class_path: tests.cli.test_tables.Linear}\ntrainer: {logger: false}\nseed_everything: 0\n"
    )
    assert run("fit", "--checkpoint.dirpath", "kept", config=str(config)) == 0
    assert run("predict", "--ckpt_path", "kept/last.ckpt", config=str(config)) == 0
    with Path("predictions.csv").open() as file:
        predicted = [float(row["prediction"]) for row in csv.DictReader(file)]
    state = torch.load("kept/last.ckpt", weights_only=True)["state_dict"]
    data = TabularData(dataset="diabetes")
    data.setup("test")
    inputs = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in data.test_dataloader()])
    expected = inputs @ state["layer.weight"].T + state["layer.bias"]
    torch.testing.assert_close(torch.tensor(predicted), expected.flatten(), rtol=1e-5, atol=1e-5)


def test_defaults_of_the_default_class_are_not_taken_over(own_table, capsys):
    Path("config.yaml").write_text(
        "data: {class_path: TabularData, init_args: {path: leaves.csv, target: kind}}\nmodel: MLP\nseed_everything: 0\n"
    )
    with pytest.raises(SystemExit):
        run("fit", "--print_config", config="config.yaml")
    settings = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    settings.update(path=Path(settings["path"]))
    kept = {name: parameter.default for name, parameter in inspect.signature(TabularData).parameters.items()}
    assert settings == {**kept, "ignore": [], "as_category": [], "path": Path("leaves.csv"), "target": "kind"}
