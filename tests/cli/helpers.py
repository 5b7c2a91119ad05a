"""Short runs of the command line."""

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
