import json
from pathlib import Path

import pytest

from lightning_reg.cli.results.summary import metric_lines
from tests.cli.helpers import run


def test_gap_is_how_much_worse_validation_is():
    lines = metric_lines({"train": {"loss": 0.1, "accuracy": 0.9}, "validation": {"loss": 0.3, "accuracy": 0.8}})
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:3]}
    assert rows["accuracy"] == ["90.00", "%", "80.00", "%", "10.00", "%"]
    assert rows["loss"] == ["0.1000", "0.3000", "0.2000"]


def test_there_is_no_gap_without_training_data():
    assert metric_lines({"validation": {"loss": 0.3}, "test": {"loss": 0.4}}) == [
        "      validation    test",
        "loss      0.3000  0.4000",
    ]


def test_only_what_every_split_has_is_shown():
    assert metric_lines({"train": {"loss": 1.0}, "validation": {"loss": 1.0, "f1": 0.5}})[1].startswith("loss")
    assert metric_lines({}) == []


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule")
def test_profile_is_of_the_fit_alone():
    profiler = {"class_path": "SimpleProfiler", "init_args": {"dirpath": "out", "filename": "a"}}
    assert run("fit", "--trainer.profiler", json.dumps(profiler)) == 0
    assert [path.name for path in Path("out").iterdir()] == ["fit-a.txt"]
    assert run("fit", "--trainer.profiler", "pytorch") == 0
