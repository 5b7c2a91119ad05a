"""Bad input ends with one clear sentence, and nothing half-written stays."""

import re
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from tests.cli.helpers import folders, run, status
from tests.conftest import REPOSITORY

BAD = [
    ("--data.dataset digitz", "dataset must be one of digits, .*did you mean 'digits'"),
    ("--model.norm bach", "norm must be one of .*did you mean 'batch'"),
    ("--model.activation rellu", "activation must be one of .*did you mean 'relu'"),
    ("--model.init zeroes", "init must be one of .*did you mean 'zeros'"),
    ("--model.drop_prob 1.5", r"drop_prob must be in \[0, 1\], but is 1.5"),
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
    ("--data.mix Mixup --data.mix.alpha -1", r"alpha must be in \[0, ∞\), but is -1"),
    ("--trainer.callbacks+=L2Penalty --trainer.callbacks.weight=-1", r"weight must be in \[0, ∞\), but is -1"),
    (
        "--trainer.callbacks+=L2Penalty --trainer.callbacks.weight=1 --trainer.callbacks.include=[foo*]",
        r"include pattern 'foo\*' matches no parameter",
    ),
    (
        "--trainer.callbacks+=GradientClipping --trainer.callbacks+=GradientClipping",
        "must not hold two callbacks of one kind with equal settings, .* has two of GradientClipping$",
    ),
    ("--trainer.callbacks+=ElasticNetPenalty", "l1 or l2 must be given; 0 switches the penalty off"),
    ("--trainer.callbacks+=GradientClipping --trainer.gradient_clip_val=1", "gradient_clip_val must be left out"),
    (
        "--trainer.callbacks+=L2Penalty --trainer.callbacks.weight=1 --trainer.callbacks.schedule.begin=500",
        "schedule.begin must be before the end of training, epoch [0-9]+, but is 500",
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
    ("--trainer.callbacks+=null", r"trainer.callbacks\+ must be something to add, but is null"),
    ("--model.optimizer.lr .inf", r"optimizer.lr must be in \(-∞, ∞\), but is inf"),
    (
        "--model.optimizer.weight_decay 0.3",
        "weight_decay must be left out where model.weight_decay is 0.01, but is 0.3",
    ),
    ("--model.optimizer Adam --model.optimizer.capturable true", "model.optimizer: If capturable=True"),
    (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor foo",
        "Early stopping conditioned on metric `foo`",
    ),
    ("--model.dict_kwargs.foo 1", r"foo is no setting of MLP \(model\)"),
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


def test_a_setting_before_the_class_that_has_it_is_told_where_to_stand(capsys):
    assert status("fit", "--model.hidden_sizes", "[3]") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: model.hidden_sizes must come after --model, or the --config, that names a class"


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_random_weights_are_not_measured(command, capsys):
    assert run(command) == 2
    assert f"error: ckpt_path must be best, last or a file for {command}" in capsys.readouterr().err
    assert folders() == []


def test_test_part_that_does_not_exist_is_named_and_nothing_is_written(image_folder, capsys):
    config = str(REPOSITORY / "configs" / "image_folder_cnn.yaml")
    options = ["--data.root", str(image_folder(classes=3)), "--data.image_size", "8"]
    assert run("fit", *options, config=config) == 0
    before = sorted(Path("runs").rglob("*"))
    assert run("test", *options, "--ckpt_path", "best", config=config) == 2
    assert "must have a folder 'test' for this, but has none" in capsys.readouterr().err
    assert sorted(Path("runs").rglob("*")) == before


def test_refused_resume_leaves_the_run_as_it_was(trained, capsys):
    before = sorted(Path("runs").rglob("*"))
    assert run("fit", "--ckpt_path", "last", "--model.hidden_sizes", "[32]") == 2
    assert sorted(Path("runs").rglob("*")) == before


def test_broken_image_is_named_before_anything_is_written(image_folder, capsys):
    root = image_folder(("train", "test"))
    (root / "test" / "class_1" / "05.png").write_bytes(b"no image")
    config = str(REPOSITORY / "configs" / "image_folder_cnn.yaml")
    assert run("fit", "--data.root", str(root), config=config) == 2
    assert "test/class_1/05.png can't be read as an image" in capsys.readouterr().err
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


def test_error_that_follows_a_handled_one_keeps_its_traceback(monkeypatch):
    def handles(*_):
        try:
            raise MisconfigurationException("harmless")
        except MisconfigurationException:
            raise KeyError("the real one")  # noqa: B904

    monkeypatch.setattr("lightning_reg.callbacks.L2Penalty.on_fit_start", handles)
    with pytest.raises(KeyError, match="the real one"):
        run("fit", "--trainer.callbacks+=L2Penalty", "--trainer.callbacks.weight=1e-4")


def test_metric_that_is_never_logged_is_named(capsys):
    assert run("fit", "--trainer.callbacks.monitor", "val/los") == 2
    assert "error: Early stopping conditioned on metric `val/los` which is not available" in capsys.readouterr().err


def test_error_of_the_parser_is_not_a_wall(capsys):
    with pytest.raises(SystemExit) as exit_status:
        run("fit", "--model.hiden_sizes", "[3]")
    assert exit_status.value.code == 2
    error = capsys.readouterr().err
    assert "hiden_sizes" in error
    assert len(error.splitlines()) < 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("L2Penalty --trainer.callbacks.weight=abc", "trainer.callbacks.weight of L2Penalty must be a number.*'abc'"),
        ("L2Penalty", "trainer.callbacks.weight of L2Penalty is missing"),
        (
            "GradientClipping --trainer.callbacks.algorithm=nrom",
            "trainer.callbacks.algorithm of GradientClipping must be one of norm, value, .*, but is 'nrom'",
        ),
    ],
)
def test_error_of_the_parser_is_that_of_the_class_that_was_asked_for(options, message, capsys):
    with pytest.raises(SystemExit):
        run("fit", *f"--trainer.callbacks+={options}".split())
    assert re.match(f"error: {message}", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("value", ["5", "[]"])
def test_a_section_is_a_mapping(value, capsys):
    with pytest.raises(SystemExit):
        run("fit", "--trainer", value)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: trainer must be a mapping of settings, or a file with one, but is {value}"


def test_a_part_of_a_setting_that_has_none_is_not_a_setting(capsys):
    with pytest.raises(SystemExit):
        run("fit", "--model.drop_prob.x", "1")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: model.drop_prob must be a number, given as a whole, but has model.drop_prob.x"


def test_prediction_by_several_devices_is_refused(trained, capsys):
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert run("predict", "--ckpt_path", "best", *devices) == 2
    assert "error: trainer.devices must be 1 for predict, but there are 2" in capsys.readouterr().err
