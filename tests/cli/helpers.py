"""Short runs of the command line."""

import re
from pathlib import Path

from lightning_reg.cli import main
from tests.conftest import REPOSITORY

MLP_CONFIG = str(REPOSITORY / "configs" / "digits_mlp.yaml")
SHORT = [
    "--trainer.max_epochs",
    "2",
    "--trainer.log_every_n_steps",
    "1",
    "--trainer.limit_train_batches",
    "4",
    "--trainer.enable_progress_bar",
    "false",
]


def run(command, *options, config=MLP_CONFIG):
    return main([command, "--config", config, *SHORT, *options])


def folders():
    return sorted(path.name for path in Path("runs/digits_mlp").glob("*")) if Path("runs").exists() else []


def status(*words):
    """What the shell would see."""
    try:
        return main(list(words))
    except SystemExit as end:
        return end.code


def assert_answered(capsys, message, *options, command="fit", config=MLP_CONFIG):
    capsys.readouterr()
    assert status(command, "--config", config, *SHORT, *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert len(errors[0]) < 700
    assert re.search(message, errors[0]), errors[0]
    assert not Path("executed").exists()
