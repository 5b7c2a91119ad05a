"""The command line as a user meets it."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_reg.cli import main
from lightning_reg.models import MLP
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


@pytest.fixture
def trained(capsys):
    assert run("fit") == 0
    return capsys.readouterr().out


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
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"] == "lightning_reg.models.MLP"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_scalars_and_hyperparameters_reach_tensorboard(trained):
    events = EventAccumulator("runs/digits_mlp/version_0").Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "test/accuracy"} <= set(tags)
    assert {"final/train_accuracy", "final/validation_accuracy", "final/test_accuracy"} <= set(tags)
    # Measuring the splits at the end is no point on the validation curve.
    assert len(events.Scalars("val/loss")) == 2


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
    assert f"{value:.6f}"[:7] in printed


def test_predictions_are_written(trained, capsys):
    assert run("predict", "--ckpt_path", "best") == 0
    path = capsys.readouterr().out.split(" predictions in ")[1].strip()
    with Path(path).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 359
    assert {row["class"] for row in rows} <= set("0123456789")
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_predictions_of_own_pictures_name_the_files(picture_folder, capsys):
    root = picture_folder(("train", "test"), classes=3)
    config = str(REPOSITORY / "configs" / "image_folder_cnn.yaml")
    options = ["--data.root", str(root), "--data.image_size", "8"]
    assert run("fit", *options, config=config) == 0
    assert run("predict", *options, "--ckpt_path", "best", config=config) == 0
    path = capsys.readouterr().out.split(" predictions in ")[1].strip()
    assert "test/class_0/00.png,class_" in Path(path).read_text()


def test_resumed_run_goes_on_in_its_folder(trained, capsys):
    assert run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    assert folders() == ["version_0"]
    assert "epochs run    3" in capsys.readouterr().out


def test_checkpoint_loads_in_python_as_it_was_configured(trained):
    module = MLP.load_from_checkpoint("runs/digits_mlp/version_0/checkpoints/best.ckpt")
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert module.configure_optimizers().param_groups[0]["lr"] == 0.002


def test_command_line_wins_over_the_checkpoint(trained, capsys):
    assert run("fit", "--ckpt_path", "last", "--model.hidden_sizes", "[32]") == 2
    error = capsys.readouterr().err
    assert "error: model.hidden_sizes must be [256, 128], as in the checkpoint, but is [32]" in error


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
        "configs/digits_mlp.yaml",
        "l2_penalty.yaml",
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


def test_error_of_the_parser_is_not_a_wall(capsys):
    with pytest.raises(SystemExit) as exit_status:
        run("fit", "--model.hiden_sizes", "[3]")
    assert exit_status.value.code == 2
    error = capsys.readouterr().err
    assert "hiden_sizes" in error
    assert len(error.splitlines()) < 15


BAD = [
    ("--data.dataset digitz", "dataset must be one of digits, .*did you mean 'digits'"),
    ("--model.norm bach", "norm must be one of .*did you mean 'batch'"),
    ("--model.activation rellu", "activation must be one of .*did you mean 'relu'"),
    ("--model.init zeroes", "init must be one of .*did you mean 'zeros'"),
    ("--model.drop_prob 1.0", r"drop_prob must be in \[0, 1\), but is 1.0"),
    ("--model.num_classes 7", "model.num_classes must be 10, as the data has it, or be left out, but is 7"),
    ("--model.input_shape [3,8,8]", r"model.input_shape must be \[1, 8, 8\], as the data has it"),
    ("--data.batch_size 0", "batch_size must be a whole number of at least 1, but is 0"),
    ("--data.val_size 5", "val_size must leave at least one sample of every class"),
    ("--data.train_size 5000", r"train_size must be in \[1, 1222\], the number of samples there are, but is 5000"),
    ("--data.dataset image_folder --data.root nowhere", "root must be a folder that exists, but is 'nowhere'"),
    (
        "--data.dataset mnist --data.root empty --data.download false",
        "root 'empty' has no train-images-idx3-ubyte of MNIST: put ",
    ),
    ("--data.mix Mixup --data.mix.alpha -1", r"alpha must be in \(0, ∞\), but is -1"),
    ("--trainer.callbacks+=L2Penalty --trainer.callbacks.weight=-1", r"weight must be in \[0, ∞\), but is -1"),
    (
        "--trainer.callbacks+=L2Penalty --trainer.callbacks.weight=1 --trainer.callbacks.include=[foo*]",
        r"include pattern 'foo\*' matches no parameter",
    ),
    (
        "--trainer.logger.save_dir file/runs",
        "save_dir must be a folder that can be written, but is 'file/runs/.*Not a directory",
    ),
    ("--checkpoint.dirpath /proc/kept", "checkpoint.dirpath must be a folder that can be written, but is '/proc/kept'"),
    ("--data.batch_size 1", "batch_size must leave at least 2 samples in every training batch"),
    ("--data.seed=-1", "seed must be a whole number of at least 0, but is -1"),
    ("--model.norm math.sqrt", r"norm must make a module, but sqrt\(256\) returns a float"),
    ("--model.activation math.pi", "activation must be one of .*, but 'math.pi' is a float"),
    ("--model.optimizer LBFGS", "optimizer must take parameter groups"),
    ("--model.optimizer Rprop", "weight_decay must be left out with Rprop, which has none, but is 0.01"),
    ("--checkpoint.monitor val/accuracy", "checkpoint.mode must be max to keep the best val/accuracy, but is min"),
    ("--ckpt_path nowhere.ckpt", "ckpt_path must be best, last or a file that exists, but is 'nowhere.ckpt'"),
    ("--ckpt_path file", "ckpt_path 'file' is not a Lightning checkpoint"),
    ("--ckpt_path last", "ckpt_path is 'last', but no run under 'runs/digits_mlp' has (a )?last.ckpt"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[options for options, _ in BAD])
def test_bad_input_ends_with_one_sentence_and_nothing_half_written(options, message, capsys):
    Path("file").write_text("no checkpoint, and no folder")
    assert run("fit", *options.split()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: .*{message}", last)
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_random_weights_are_not_measured(command, capsys):
    assert run(command) == 2
    assert f"error: ckpt_path must be best, last or a file for {command}" in capsys.readouterr().err
    assert folders() == []


def test_test_part_that_does_not_exist_is_named_and_nothing_is_written(picture_folder, capsys):
    config = str(REPOSITORY / "configs" / "image_folder_cnn.yaml")
    options = ["--data.root", str(picture_folder(classes=3)), "--data.image_size", "8"]
    assert run("fit", *options, config=config) == 0
    before = sorted(Path("runs").rglob("*"))
    assert run("test", *options, "--ckpt_path", "best", config=config) == 2
    assert "must have a folder 'test' for this, but has none" in capsys.readouterr().err
    assert sorted(Path("runs").rglob("*")) == before


def test_refused_resume_leaves_the_run_as_it_was(trained, capsys):
    before = sorted(Path("runs").rglob("*"))
    assert run("fit", "--ckpt_path", "last", "--model.hidden_sizes", "[32]") == 2
    assert sorted(Path("runs").rglob("*")) == before


def test_other_structure_than_the_checkpoints_is_refused_even_if_the_shapes_fit(trained, capsys):
    assert run("test", "--ckpt_path", "best", "--model.activation", "tanh") == 2
    error = capsys.readouterr().err
    assert "error: model.activation must be 'relu', as in the checkpoint, but is 'tanh'" in error


def test_other_split_than_the_checkpoints_is_noticed(trained):
    with pytest.warns(UserWarning, match="trained with seed 0, not 3: among the pictures held out now"):
        assert run("validate", "--ckpt_path", "best", "--data.seed", "3") == 0


def test_other_classes_than_the_checkpoints_are_refused(picture_folder, capsys):
    root = picture_folder(("train", "test"), classes=3)
    config = str(REPOSITORY / "configs" / "image_folder_cnn.yaml")
    options = ["--data.root", str(root), "--data.image_size", "8"]
    assert run("fit", *options, config=config) == 0
    for split in ("train", "test"):
        (root / split / "class_0").rename(root / split / "zebra")
    assert run("test", *options, "--ckpt_path", "best", config=config) == 2
    assert "must have the checkpoint's classes, class_0, class_1, class_2, but has" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_curves_of_a_csv_file_are_kept(capsys):
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv", "--trainer.logger.name", "run"]
    assert run("fit", *logger) == 0
    curves = Path("csv/run/version_0/metrics.csv").read_text()
    assert "tensorboard" not in capsys.readouterr().out
    assert run("test", *logger, "--ckpt_path", "best") == 0
    assert Path("csv/run/version_0/metrics.csv").read_text() == curves


def test_divergence_is_said(capsys):
    assert run("fit", "--model.optimizer", "SGD", "--model.optimizer.lr", "1e30") == 0
    assert "stopped by    Monitored metric val/loss = nan is not finite." in capsys.readouterr().out


def test_metric_that_is_never_logged_is_named(capsys):
    assert run("fit", "--trainer.callbacks.monitor", "val/los") == 2
    assert "error: Early stopping conditioned on metric `val/los` which is not available" in capsys.readouterr().err


@pytest.fixture
def sigint(monkeypatch):
    """SIGINT as a terminal's user has it, whatever this process was started with; and pytest lives on."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    # Lightning ignores it while it shuts down, for good.
    deaf = SimpleNamespace(signal=lambda *_: None, SIGINT=signal.SIGINT, SIG_IGN=signal.SIG_IGN)
    monkeypatch.setattr("lightning.pytorch.trainer.call.signal", deaf)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, previous)


def test_interruption_before_anything_was_saved_advises_nothing(monkeypatch, capsys, sigint):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_reg.callbacks.BestWeightsEarlyStopping.on_train_start", interrupt)
    with pytest.raises(SystemExit) as exit_status:
        run("fit")
    assert exit_status.value.code == 130
    assert "Interrupted, before there was anything to save." in capsys.readouterr().out


def test_interruption_within_a_step_resumes_to_the_bit(monkeypatch, sigint):
    """SIGINT between the backward pass and the optimizer's step: the worst moment."""
    exact = ["--model.drop_prob", "0", "--trainer.callbacks", "null", "--trainer.max_epochs", "3"]
    asked = []

    def interrupt(self, trainer, pl_module, optimizer):
        if trainer.global_step == 6 and not asked:
            asked.append(sigint())

    assert run("fit", *exact) == 0
    monkeypatch.setattr(Callback, "on_before_optimizer_step", interrupt)
    with pytest.raises(SystemExit):
        run("fit", *exact)
    assert run("fit", *exact, "--ckpt_path", "last") == 0
    whole, resumed = (
        torch.load(f"runs/digits_mlp/version_{index}/checkpoints/last.ckpt", weights_only=True) for index in (0, 1)
    )
    assert whole["global_step"] == resumed["global_step"] == 12
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())


def test_other_settings_of_the_optimizer_on_resume_are_noticed(trained):
    with pytest.warns(UserWarning, match=r"goes on as the checkpoint has it, with lr 0.002, not 0.5"):
        run("fit", "--ckpt_path", "last", "--model.optimizer.lr", "0.5", "--trainer.max_epochs", "3")


def test_same_settings_on_resume_are_no_news(trained, recwarn):
    config = str(REPOSITORY / "configs" / "digits_cnn.yaml")  # with a schedule of the learning rate
    assert run("fit", config=config) == 0
    assert run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", config=config) == 0
    assert not [warning for warning in recwarn if "goes on as the checkpoint" in str(warning.message)]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions_train_from_the_command_line(precision):
    assert run("fit", "--trainer.precision", precision) == 0


def test_limited_predictions_are_written(trained, capsys):
    assert run("predict", "--ckpt_path", "best", "--trainer.limit_predict_batches", "2") == 0
    assert "128 predictions" in capsys.readouterr().out


def test_prediction_by_several_devices_is_refused(trained, capsys):
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert run("predict", "--ckpt_path", "best", *devices) == 2
    assert "error: trainer.devices must be 1 for predict, but there are 2" in capsys.readouterr().err


def test_early_stop_is_said_also_without_a_limit_of_epochs(capsys):
    assert run("fit", "--trainer.max_epochs=-1", "--trainer.callbacks.patience=0") == 0
    assert ", stopped early" in capsys.readouterr().out


def test_finished_run_is_not_called_stopped(trained):
    assert "stopped early" not in trained


def test_checkpoints_of_the_users_own_do_not_count_as_the_best(capsys):
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=train/loss"]
    assert run("fit", *own, "--trainer.callbacks.mode=max") == 0
    assert "checkpoints/best.ckpt" in capsys.readouterr().out


FOREIGN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule

class Theirs(LightningModule):
    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.num_classes = num_classes
        self.layer = torch.nn.Linear(4, num_classes)
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()
    def validation_step(self, batch, batch_idx):
        self.log("val_error", self.layer(batch[0]).square().mean())
    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class TheirData(LightningDataModule):
    num_classes = 5
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)), batch_size=4)
    def val_dataloader(self):
        return self.train_dataloader()
    def predict_dataloader(self):
        return self.train_dataloader()
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    return [
        "fit",
        "--model",
        "theirs.Theirs",
        "--data",
        "theirs.TheirData",
        "--checkpoint.monitor",
        "val_error",
        *SHORT,
    ]


def test_foreign_module_and_data_train_and_are_measured_as_far_as_they_go(foreign, capsys):
    assert main([*foreign, "--trainer.callbacks+=L2Penalty", "--trainer.callbacks.weight=1e-3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"error +\d\.\d{4}", line) for line in lines)


def test_argument_that_foreign_data_does_not_tell_is_asked_for(foreign, capsys):
    assert main([*foreign, "--model", "MLP"]) == 2
    assert "model.input_shape must be given, because TheirData doesn't tell it" in capsys.readouterr().err


def test_predictions_that_are_no_probabilities_are_refused(foreign, capsys):
    assert main(["predict", *foreign[1:]]) == 2
    assert "predict writes class probabilities" in capsys.readouterr().err


def test_default_of_a_foreign_module_is_not_given_by_hand(foreign, capsys):
    assert main(foreign) == 0
    assert main([*foreign, "--model.num_classes", "4"]) == 2
    assert "model.num_classes must be 5, as the data has it" in capsys.readouterr().err


def test_error_that_follows_a_handled_one_keeps_its_traceback(monkeypatch):
    def handles(*_):
        try:
            raise MisconfigurationException("harmless")
        except MisconfigurationException:
            raise KeyError("the real one")  # noqa: B904

    monkeypatch.setattr("lightning_reg.callbacks.L2Penalty.on_fit_start", handles)
    with pytest.raises(KeyError, match="the real one"):
        run("fit", "--trainer.callbacks+=L2Penalty", "--trainer.callbacks.weight=1e-4")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_two_processes_train_and_end_with_the_table(strategy):
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", strategy]
    command = [sys.executable, str(REPOSITORY / "train.py"), "fit", "--config", MLP_CONFIG, *SHORT, *devices]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("epochs run    2") == 1
    assert re.search(r"accuracy( +-?\d+\.\d\d %){4}", done.stdout)


def test_broken_picture_is_named_before_anything_is_written(picture_folder, capsys):
    root = picture_folder(("train", "test"))
    (root / "test" / "class_1" / "05.png").write_bytes(b"no picture")
    config = str(REPOSITORY / "configs" / "image_folder_cnn.yaml")
    assert run("fit", "--data.root", str(root), config=config) == 2
    assert "test/class_1/05.png can't be read as a picture" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_unforeseen_errors_keep_their_traceback(monkeypatch):
    class Faulty(Callback):
        def on_train_start(self, trainer, pl_module):
            raise ZeroDivisionError

    monkeypatch.setattr("lightning_reg.callbacks.L2Penalty.on_fit_start", Faulty.on_train_start)
    with pytest.raises(ZeroDivisionError):
        run("fit", "--trainer.callbacks+=L2Penalty", "--trainer.callbacks.weight=1e-4")


def test_what_lightning_refuses_is_one_sentence_too(monkeypatch, capsys):
    def refuse(*_):
        raise MisconfigurationException("no such device")

    monkeypatch.setattr("lightning_reg.callbacks.L2Penalty.on_fit_start", refuse)
    assert run("fit", "--trainer.callbacks+=L2Penalty", "--trainer.callbacks.weight=1e-4") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: no such device"


def test_two_fast_runs_without_a_logger_do_not_collide():
    for _ in range(2):
        assert run("fit", "--trainer.logger", "false") == 0


def test_without_checkpoints_it_still_ends_well(capsys):
    assert run("fit", "--trainer.enable_checkpointing", "false") == 0
    assert "best epoch    unknown (no checkpoint)" in capsys.readouterr().out


def test_no_epoch_at_all_ends_with_the_table(capsys):
    assert run("fit", "--trainer.max_epochs", "0") == 0
    assert "epochs run    0" in capsys.readouterr().out


def test_fast_dev_run_writes_nothing():
    assert run("fit", "--trainer.fast_dev_run", "true") == 0
    assert not Path("runs").exists()


@pytest.mark.slow
def test_interrupted_run_leaves_a_checkpoint_and_goes_on():
    quiet = ["--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false"]
    # A job in the background is started with SIGINT ignored, and what it starts inherits that.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import lightning_reg.cli as cli"
    command = [sys.executable, "-c", f"{start}; raise SystemExit(cli.main())", "fit", "--config", MLP_CONFIG, *quiet]
    command += ["--trainer.max_epochs", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = Path("runs/digits_mlp/version_0/checkpoints/last.ckpt")
    deadline = time.monotonic() + 90
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert output.splitlines()[-1].endswith(f"--ckpt_path {last}")
    step = torch.load(last, weights_only=True)["global_step"]
    assert step > 0
    epochs = str(torch.load(last, weights_only=True)["epoch"] + 2)
    assert main(["fit", "--config", MLP_CONFIG, "--trainer.max_epochs", epochs, "--ckpt_path", "last", *quiet]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == int(epochs) * 20 > step
    assert folders() == ["version_0"]
