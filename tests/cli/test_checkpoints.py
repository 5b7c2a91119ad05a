"""What is done with checkpoints: found by name, resumed, measured, and refused where they don't fit."""

import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_reg.models import MLP
from tests.cli.helpers import folders, run
from tests.conftest import REPOSITORY


def test_resumed_run_goes_on_in_its_folder(trained, capsys):
    assert run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    assert folders() == ["version_0"]
    assert "epochs run   3" in capsys.readouterr().out


def test_checkpoint_loads_in_python_as_it_was_configured(trained):
    module = MLP.load_from_checkpoint("runs/digits_mlp/version_0/checkpoints/best.ckpt")
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.002


def test_command_line_wins_over_the_checkpoint(trained, capsys):
    assert run("fit", "--ckpt_path", "last", "--model.hidden_sizes", "[32]") == 2
    error = capsys.readouterr().err
    assert "error: model.hidden_sizes must be [256, 128], as in the checkpoint, but is [32]" in error


def test_other_structure_than_the_checkpoints_is_refused_even_if_the_shapes_fit(trained, capsys):
    assert run("test", "--ckpt_path", "best", "--model.activation", "tanh") == 2
    error = capsys.readouterr().err
    assert "error: model.activation must be 'relu', as in the checkpoint, but is 'tanh'" in error


def test_other_split_than_the_checkpoints_is_noticed(trained):
    with pytest.warns(UserWarning, match="trained with seed 0, not 3: among the samples held out now"):
        assert run("validate", "--ckpt_path", "best", "--data.seed", "3") == 0


def test_other_classes_than_the_checkpoints_are_refused(image_folder, capsys):
    root = image_folder(("train", "test"), classes=3)
    config = str(REPOSITORY / "configs" / "image_folder_cnn.yaml")
    options = ["--data.root", str(root), "--data.image_size", "8"]
    assert run("fit", *options, config=config) == 0
    for split in ("train", "test"):
        (root / split / "class_0").rename(root / split / "zebra")
    assert run("test", *options, "--ckpt_path", "best", config=config) == 2
    assert "must have the checkpoint's classes, class_0, class_1, class_2, but has" in capsys.readouterr().err


def test_other_settings_of_the_optimizer_on_resume_are_noticed(trained):
    with pytest.warns(UserWarning, match=r"goes on as the checkpoint has it, with lr 0.002, not 0.5"):
        run("fit", "--ckpt_path", "last", "--model.optimizer.lr", "0.5", "--trainer.max_epochs", "3")


@pytest.mark.parametrize(
    "scheduler",
    [
        "CosineAnnealingLR --model.lr_scheduler.T_max 9",
        "OneCycleLR --model.lr_scheduler.max_lr 0.01 --model.lr_scheduler.total_steps 9",
        "lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler.monitor val/accuracy "
        "--model.lr_scheduler.patience 0 --model.lr_scheduler.mode min",
    ],
    ids=["cosine", "one_cycle", "plateau"],
)
def test_same_settings_on_resume_are_no_news_whatever_the_schedule(scheduler, recwarn):
    schedule = ["--model.lr_scheduler", *scheduler.split()]
    assert run("fit", *schedule) == 0
    assert run("fit", *schedule, "--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    assert not [warning for warning in recwarn if "goes on as the checkpoint" in str(warning.message)]


def test_everything_done_with_a_checkpoint_lands_in_its_run(trained):
    config = Path("runs/digits_mlp/version_0/config.yaml").read_text()
    for command in ("validate", "test", "predict"):
        assert run(command, "--ckpt_path", "best") == 0
    assert folders() == ["version_0"]
    assert Path("runs/digits_mlp/version_0/config.yaml").read_text() == config
    assert Path("runs/digits_mlp/version_0/predictions.csv").exists()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_best_checkpoint_is_found_and_measured(trained, capsys, command):
    assert run(command, "--ckpt_path", "best") == 0
    printed = capsys.readouterr().out
    expected = {"validate": "final/validation_accuracy", "test": "final/test_accuracy"}[command]
    value = EventAccumulator("runs/digits_mlp/version_0").Reload().Scalars(expected)[0].value
    assert any(float(number) == pytest.approx(value, abs=1e-6) for number in re.findall(r"0\.\d+", printed))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_curves_of_a_csv_file_are_kept(capsys):
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv", "--trainer.logger.name", "run"]
    assert run("fit", *logger) == 0
    curves = Path("csv/run/version_0/metrics.csv").read_text()
    assert "tensorboard" not in capsys.readouterr().out
    assert run("test", *logger, "--ckpt_path", "best") == 0
    assert Path("csv/run/version_0/metrics.csv").read_text() == curves


def test_checkpoints_of_the_users_own_do_not_count_as_the_best(capsys):
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=train/loss"]
    assert run("fit", *own, "--trainer.callbacks.mode=max") == 0
    assert "checkpoints/best.ckpt" in capsys.readouterr().out
