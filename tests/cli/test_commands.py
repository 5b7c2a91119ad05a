"""The command line as a user meets it."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_reg.cli import main
from tests.cli.helpers import MLP_CONFIG, SHORT, run, status
from tests.conftest import REPOSITORY


def test_fit_ends_with_the_table(trained):
    rows = {line.split()[0]: line for line in trained.splitlines() if line.strip()}
    assert rows["accuracy"].count("%") == 4  # train, validation, test, gap
    assert "epochs run" in trained
    assert "best epoch" in trained
    assert "runs/digits_mlp/version_0/checkpoints/best.ckpt" in rows["checkpoint"]
    assert rows["TensorBoard"].endswith("tensorboard --logdir runs/digits_mlp")


def test_gap_is_the_difference_of_the_printed_numbers(trained):
    numbers = next(line for line in trained.splitlines() if line.startswith("accuracy")).replace("%", "").split()[1:]
    train, validation, _, gap = map(float, numbers)
    assert gap == pytest.approx(train - validation, abs=0.011)


def test_fit_leaves_logs_configuration_and_both_checkpoints(trained):
    folder = Path("runs/digits_mlp/version_0")
    assert list(folder.glob("events.out.tfevents.*"))
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"] == "lightning_reg.MLP"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_scalars_and_hyperparameters_reach_tensorboard(trained):
    events = EventAccumulator("runs/digits_mlp/version_0").Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "test/accuracy"} <= set(tags)
    assert {"final/train_accuracy", "final/validation_accuracy", "final/test_accuracy"} <= set(tags)
    # Measuring the splits at the end is no point on the validation curve.
    assert len(events.Scalars("val/loss")) == 2


def test_predictions_are_written(trained, capsys):
    assert run("predict", "--ckpt_path", "best") == 0
    path = capsys.readouterr().out.split(" predictions in ")[1].strip()
    with Path(path).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 359
    assert {row["class"] for row in rows} <= set("0123456789")
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_predictions_of_own_images_name_the_files(image_folder, capsys):
    root = image_folder(("train", "test"), classes=3)
    config = str(REPOSITORY / "configs" / "image_folder_cnn.yaml")
    options = ["--data.root", str(root), "--data.image_size", "8"]
    assert run("fit", *options, config=config) == 0
    assert run("predict", *options, "--ckpt_path", "best", config=config) == 0
    path = capsys.readouterr().out.split(" predictions in ")[1].strip()
    assert "test/class_0/00.png,class_" in Path(path).read_text()


def test_print_config_is_complete(capsys):
    with pytest.raises(SystemExit) as exit_status:
        run("fit", "--print_config")
    assert exit_status.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert set(config["model"]["init_args"]) >= {
        "norm",
        "activation",
        "dropout",
        "init",
        "optimizer",
        "label_smoothing",
    }
    assert set(config["data"]["init_args"]) >= {"dataset", "root", "val_size", "train_size", "mix", "seed"}


def test_alone_it_says_what_there_is(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name in (
        "fit",
        "test",
        "predict",
        "  digits_mlp ",
        "techniques/l2_penalty",
        "MLP",
        "CNN",
        "L2Penalty",
        "image_folder",
    ):
        assert name in printed


@pytest.mark.parametrize(
    ("option", "value"),
    [("--model.help", "MLP"), ("--data.help", "ImageData"), ("--trainer.callbacks.help", "L2Penalty")],
)
def test_help_of_a_class_is_readable(capsys, option, value):
    with pytest.raises(SystemExit) as exit_status:
        main(["fit", option, value])
    assert exit_status.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) < 130  # a list of all of torch's modules would be longer


def test_divergence_is_said(capsys):
    assert run("fit", "--model.optimizer", "SGD", "--model.optimizer.lr", "1e30") == 0
    assert "stopped by   Monitored metric val/loss = nan is not finite." in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions_train_from_the_command_line(precision):
    assert run("fit", "--trainer.precision", precision) == 0


def test_limited_predictions_are_written(trained, capsys):
    assert run("predict", "--ckpt_path", "best", "--trainer.limit_predict_batches", "2") == 0
    assert "128 predictions" in capsys.readouterr().out


def test_early_stop_is_said_also_without_a_limit_of_epochs(capsys):
    assert run("fit", "--trainer.max_epochs=-1", "--trainer.callbacks.patience=0") == 0
    printed = capsys.readouterr().out
    assert ", stopped early" in printed
    assert "stopped by   Monitored metric val/loss did not improve in the last" in printed


def test_finished_run_is_not_called_stopped(trained):
    assert "stopped early" not in trained


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_two_processes_train_and_end_with_the_table(strategy):
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", strategy]
    command = [sys.executable, str(REPOSITORY / "train.py"), "fit", "--config", MLP_CONFIG, *SHORT, *devices]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("epochs run   2") == 1
    assert re.search(r"accuracy( +-?\d+\.\d\d %){4}", done.stdout)


@pytest.mark.slow
def test_no_thread_of_gloo_is_left_when_the_interpreter_ends():
    script = """
from pathlib import Path
from lightning_reg.cli import main
assert main() == 0
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print("threads of gloo:", sum(name.startswith("pt_gloo") for name in names))
"""
    one = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-c", script, "fit", "--config", MLP_CONFIG, *SHORT, *one]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "threads of gloo: 0" in done.stdout


def test_two_fast_runs_without_a_logger_do_not_collide():
    for _ in range(2):
        assert run("fit", "--trainer.logger", "false") == 0


def test_without_checkpoints_it_still_ends_well(capsys):
    assert run("fit", "--trainer.enable_checkpointing", "false") == 0
    assert "best epoch   unknown (no checkpoint)" in capsys.readouterr().out


def test_no_epoch_at_all_ends_with_the_table(capsys):
    assert run("fit", "--trainer.max_epochs", "0") == 0
    assert "epochs run   0" in capsys.readouterr().out


def test_fast_dev_run_writes_nothing():
    assert run("fit", "--trainer.fast_dev_run", "true") == 0
    assert not Path("runs").exists()


def test_misspelled_command_is_told_from_all_of_them(capsys):
    assert status("studie", "dropout") == 2
    assert capsys.readouterr().err == (
        "error: command must be one of fit, validate, test, predict, configs, search, soup, study, but is 'studie'; "
        "did you mean 'study'?\n"
    )


@pytest.mark.parametrize("words", [["fit"], ["test"], ["soup", "a.ckpt", "b.ckpt"]], ids=lambda words: words[0])
def test_missing_model_is_named_as_it_is_given(words, capsys):
    assert status(*words) == 2
    assert capsys.readouterr().err == "error: model is missing\n"
