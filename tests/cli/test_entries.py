"""Entries of configurations that aren't what their names ask for."""

from pathlib import Path

import pytest

from tests.cli.helpers import MLP_CONFIG, assert_answered


def with_changed(old, new):
    Path("changed.yaml").write_text(Path(MLP_CONFIG).read_text().replace(old, new, 1))
    return "changed.yaml"


FILES = [
    ("class_path: AdamW", "class_path: AdamX", "must be .* of an Optimizer, but is 'AdamX'; did you mean Adam?"),
    (
        "class_path: AdamW",
        "class_path: []",
        r"class_path of model.optimizer must be the name of an Optimizer, but is \[",
    ),
    ("class_path: TensorBoardLogger", "class_path: .nan", "class_path of trainer.logger must be .*, but is nan$"),
    ("norm: batch", "norm: {}", r"norm must make a module, but Module\(256\) fails: "),
    ("seed_everything: 0", "prediction: []", r"prediction must be a mapping of settings, but is \[\]"),
    (
        "    optimizer:",
        "    lr_scheduler: {class_path: StepLR, init_args: {step_size: a}}\n    optimizer:",
        "model.lr_scheduler.step_size of StepLR must be a whole number, but is 'a'",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), FILES, ids=[new for _, new, _ in FILES])
def test_entry_of_a_configuration(old, new, message, capsys):
    assert_answered(capsys, message, config=with_changed(old, new))
    assert not Path("runs").exists()
