"""Settings, configurations and checkpoints that can't be used are answered by one sentence, and run nothing."""

import math
import os
import traceback
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder
from torch import Tensor

from lightning_reg.cli import main
from lightning_reg.cli.answers.checks import within_memory
from tests.cli.helpers import SHORT, assert_answered, run

pytestmark = pytest.mark.timeout(120)  # what waits for a pipe waits forever


class Payload:
    """Leaves a file behind wherever it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


SETTINGS = [
    ("--model MPL", "model must be the name or the import path of a LightningModule, but is 'MPL'; did you mean MLP"),
    ("--model torch.nn.Linear", "model must be a LightningModule, but torch.nn.Linear is another class"),
    ("--data IamgeData", "data must be the name .* of a LightningDataModule.*; did you mean ImageData?"),
    ("--data.mix mixup", "data.mix must be the name .* of a Mixing, but is 'mixup'; did you mean Mixup?"),
    ("--trainer.callbacks+=L2Penaltyy", "name or the import path of a Callback.*; did you mean L2Penalty?"),
    ("--trainer.callbacks+=BatchPicture", "must be a Callback by its name of now: BatchPicture is called BatchImages"),
    (
        "--model.lr_scheduler MultiStepLR --model.lr_scheduler.milestones abc",
        r"must be a list \(of a whole number\), but is 'abc'",
    ),
    ("--trainer.check_val_every_n_epoch 0", "check_val_every_n_epoch must be a whole number of at least 1, but is 0"),
    ("--trainer.num_sanity_val_steps -5", "num_sanity_val_steps must be a whole number of at least -1, but is -5"),
    ("--trainer.min_epochs 5", "trainer.min_epochs must be at most max_epochs, which is 2, but is 5"),
    ("--checkpoint.save_top_k -5", "checkpoint.save_top_k is -5: Invalid value for save_top_k=-5"),
    ("--checkpoint.train_time_interval abc", "must be a duration such as 0:10:00 or null, but is 'abc'"),
    ("--checkpoint.mode foo", "checkpoint.mode is 'foo': "),
    ("--trainer.callbacks+=Technique", "must name a technique, but Technique is only what several have in common"),
    ("--model.lr_scheduler LRScheduler", "model.lr_scheduler must be a schedule, but LRScheduler is only what"),
    ("--trainer.callbacks 5", "must be the name of a Callback or a mapping with class_path and init_args, but is 5"),
    ("--trainer.logger foo", "trainer.logger must be the name or the import path of a Logger, but is 'foo'"),
    ("--model.hidden_sizes null", "model.hidden_sizes must be a list .*, but is null"),
    ("--model.hidden_sizes [8,a]", r"model.hidden_sizes of MLP must be a list .*, but is \[8, 'a'\]"),
    ("--trainer.max_epochs 0o10", "trainer.max_epochs must be a whole number or null, but is '0o10'"),
    ("--model.hidden_sizes abc", "model.hidden_sizes of MLP must be a list .*, but is 'abc'"),
    ("--model.hidden_sizes [1000000000,1000000000]", "model must fit into this machine's .* GiB of memory"),
    ("--model.optimizer null", "model.optimizer must be the import path of a callable, but is null"),
    ("--model.optimizer Adm", "model.optimizer must be .* of an Optimizer, but is 'Adm'; did you mean Adam?"),
    ("--model.optimizer adamw", "model.optimizer must be .* of an Optimizer, but is 'adamw'; did you mean AdamW?"),
    ("--model.optimizer.lr -1", "model.optimizer.lr is -1.0: Invalid learning rate: -1.0"),
    ("--model.optimizer.differentiable true", "model.optimizer: a leaf Variable that requires grad is being used in"),
    ("--model.optimizer.lr abc", "model.optimizer.lr of AdamW must be a number .*, but is 'abc'"),
    ("--model.optimizer.betas [1.5,2]", "model.optimizer: Invalid beta parameter at index 0: 1.5"),
    ("--model.lr_scheduler CosineAnnealingLR --model.lr_scheduler.T_max 0", "model.lr_scheduler can't .*ZeroDivision"),
    (
        "--model.lr_scheduler ReduceLROnPlateau --model.lr_scheduler.monitor val/loss",
        r"a full class path where a name is ambiguous: lightning.pytorch.cli.ReduceLROnPlateau or torch\.",
    ),
    ("--data.batch_size 100000000000000000000000", "data.batch_size must be at most 9223372036854775807"),
    ("--data.num_workers 100000", "data.num_workers must be at most .* on this machine"),
    ("--data.augment torchvision.transforms.ToTensor", "augment must be .*'torchvision.transforms.ToTensor'"),
    ("--seed_everything -1", "seed_everything is -1: -1 is not in bounds"),
    ("--seed_everything abc", "seed_everything must be true or false or a whole number, but is 'abc'"),
    ("--trainer.max_epochs nan", "trainer.max_epochs must be a whole number or null, but is 'nan'"),
    ("--trainer.accelerator quantum", "trainer.accelerator is 'quantum': .*invalid accelerator"),
    ("--trainer.devices abc", "trainer.devices is 'abc'"),
    ("--trainer.devices 999 --trainer.accelerator cpu", "trainer.devices must be at most .*, but is 999"),
    ("--trainer.strategy foo", "trainer.strategy is 'foo': .*invalid strategy"),
    ("--trainer.strategy ddp_spawn", "trainer.strategy must be ddp, or ddp_fork, for several processes: .*pickled"),
    (
        "--trainer.plugins MixedPrecision --trainer.plugins.precision 16-mixed --trainer.plugins.device xyz",
        "error: trainer.plugins.device is 'xyz': Expected one of cpu",
    ),
    (
        "--trainer.profiler SimpleProfiler --trainer.profiler.dirpath /proc/times",
        "SimpleProfiler's dirpath must be a folder that can be written, but is '/proc/times'",
    ),
    (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor foo --trainer.callbacks+=UnitNorm",
        "error: trainer.callbacks.monitor is 'foo': Early stopping conditioned on metric `foo`",
    ),
    ("--trainer.precision fp16", "trainer.precision must be one of .*16-mixed.*, but is 'fp16'"),
    ("--trainer.profiler foo", "trainer.profiler is 'foo'"),
    ("--trainer.profiler.dirpath foo", "must name a Profiler before trainer.profiler.dirpath can be set"),
    ("--data.mix.alpha 1", "data.mix must name a Mixing before data.mix.alpha can be set: --data.mix NAME"),
    ("--trainer.accumulate_grad_batches 0", r"trainer.accumulate_grad_batches must be in \(0, ∞\), but is 0"),
    ("--trainer.val_check_interval 0", r"trainer.val_check_interval must be in \(0, ∞\), but is 0"),
    ("--trainer.gradient_clip_val -1", r"trainer.gradient_clip_val must be in \[0, ∞\), but is -1"),
    ("--trainer.gradient_clip_algorithm value", "gradient_clip_val must be given with .* 'value', but is null"),
    ("--trainer.num_nodes 2", "trainer.num_nodes must be 1 outside of a cluster, but is 2"),
    (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/loss --trainer.callbacks.min_delta .nan",
        r"trainer.callbacks.min_delta must be in \[-∞, ∞\], but is nan",
    ),
    (f"--checkpoint.filename {'a' * 300}", "checkpoint.filename must have at most 200 bytes and no null byte"),
    ("--trainer.log_every_n_steps -3", "trainer.log_every_n_steps must be a whole number of at least 0, but is -3"),
    ("--checkpoint.filename ../../../up", "checkpoint.filename must be a name within the run's folder"),
    ("--checkpoint.filename {foo", "checkpoint.filename must have names of metrics in braces, but is '{foo'"),
    ("--trainer.logger.name ../../..", r"trainer.logger.name must be a name within the run's folder"),
    ("--checkpoint.monitor null", "checkpoint.monitor must be a metric that is logged, but is null"),
    ("--checkpoint.every_n_epochs 50", "checkpoint.every_n_epochs must be at most max_epochs, which is 2, but is 50"),
    ("--trainer.check_val_every_n_epoch 3", "check_val_every_n_epoch must be at most max_epochs, which is 2, but is 3"),
    ("--trainer.min_epochs -1", "trainer.min_epochs must be a whole number of at least 0, but is -1"),
    ("--trainer.max_time 00:00:00:00", "trainer.max_time must be above 0, but is '00:00:00:00'"),
    ("--trainer.max_time {}", "trainer.max_time must be above 0, but is {}"),
    ("--model null", "model is missing"),
    ("--model.help MLPP", "model.help must be the name .* of a LightningModule, but is 'MLPP'; did you mean MLP?"),
    ("--model.init os.getcwd", r"init must fill a tensor in place, but getcwd\(weight\) fails: "),
    ("--model.optimizer.params []", r"params is no setting of AdamW \(model.optimizer\)$"),
    ("--model.optimizer Optimizer", "model.optimizer.defaults of Optimizer is missing"),
    (
        "--model.lr_scheduler SequentialLR",
        "model.lr_scheduler.schedulers and model.lr_scheduler.milestones of SequentialLR are missing",
    ),
    (
        "--model.lr_scheduler LambdaLR --model.lr_scheduler.lr_lambda foo",
        "model.lr_scheduler.lr_lambda of LambdaLR must be the import path of a callable or a list .*, but is 'foo'",
    ),
    (
        "--model.lr_scheduler OneCycleLR --model.lr_scheduler.max_lr 0.1",
        r"model.lr_scheduler can't be used with \{'max_lr': 0.1\}: ValueError: You must define",
    ),
    (
        "--model.lr_scheduler CosineAnnealingLR --model.lr_scheduler.T_max -3",
        "model.lr_scheduler.T_max must be a whole number of at least 0, but is -3",
    ),
    (
        "--model.lr_scheduler StepLR --model.lr_scheduler.step_size 30 --model.lr_scheduler.gamma .nan",
        r"model.lr_scheduler.gamma must be in \(-∞, ∞\), but is nan",
    ),
    (
        "--model.lr_scheduler ExponentialLR --model.lr_scheduler.gamma -0.5",
        r"model.lr_scheduler can't be used with .*: the learning rate must be in \[0, ∞\), but is -0.05",
    ),
    ("--trainer.logger [TensorBoardLogger,foo]", "trainer.logger must be the name .* of a Logger, but is 'foo'"),
    ("-trainer.max_epochs 3", "trainer.max_epochs must be written --trainer.max_epochs"),
    ("trainer.max_epochs=3", "trainer.max_epochs must be written --trainer.max_epochs"),
    ("--config studies/dropout", "must hold settings of a run, but has variants: .* study .*studies/dropout.yaml"),
    ("--config search/digits", "must hold settings of a run, but has base: .* search .*search/digits.yaml"),
    ("--config s3://nowhere/x.yaml", "config 's3://nowhere/x.yaml' can't be read: .*s3fs"),
    ("--foo 3", "foo is no setting"),
    ("--model.optimizer.betas.0 0.5", "model.optimizer.betas must be given as a whole, but has .*betas.0$"),
    ("--model.optimizer.betas [0.9]", "model.optimizer.betas of AdamW must be a list .*, but is .0.9"),
    ("--model.optimizer {class_path:SGD,init_args:5}", "model.optimizer must be .* of an Optimizer, but is"),
    ("--trainer.limit_train_batches 0", r"trainer.limit_train_batches must be in \(0, ∞\), but is 0"),
    ("--trainer.max_epochs !!bool", "a value isn't plain YAML: '' is no value of its tag"),
    (f"--data.batch_size 0x{'f' * 5000}", "data.batch_size must be at most 9223372036854775807, but is beyond"),
    (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/loss --trainer.callbacks.patience -1",
        "trainer.callbacks.patience must be a whole number of at least 0, but is -1",
    ),
    (
        "--trainer.callbacks+=BatchSizeFinder --trainer.callbacks.init_val 0",
        "trainer.callbacks.init_val must be a whole number of at least 1, but is 0",
    ),
    ("--trainer.callbacks+=BaseFinetuning", r"BaseFinetuning \(trainer.callbacks\): NotImplementedError"),
    (
        "--trainer.callbacks+=WeightAveraging --trainer.callbacks.avg_fn os.getcwd",
        "trainer.callbacks.avg_fn of WeightAveraging must be of another type, but is 'os.getcwd'$",
    ),
    (
        "--trainer.callbacks+=StochasticWeightAveraging --trainer.callbacks.swa_lrs 1 "
        "--trainer.callbacks.avg_fn os.getcwd",
        "avg_fn of StochasticWeightAveraging must be the import path of a callable.*, but is 'os.getcwd'",
    ),
    (
        "--trainer.callbacks+=StochasticWeightAveraging --trainer.callbacks.swa_lrs=0.1 "
        "--trainer.callbacks.swa_epoch_start=5",
        "swa_epoch_start of .*StochasticWeightAveraging must be before the end of training, epoch 2, but is 5",
    ),
]


@pytest.mark.parametrize(("options", "message"), SETTINGS, ids=[options for options, _ in SETTINGS])
def test_setting_that_cannot_be_used(options, message, capsys):
    assert_answered(capsys, message, *options.split())
    assert not Path("runs").exists()


def test_metric_that_no_checkpoint_can_follow(capsys):
    options = ("--checkpoint.monitor", "foo", "--trainer.log_every_n_steps", "1")
    assert_answered(capsys, "checkpoint.monitor must be a metric that is logged, .*val/loss, but is 'foo'", *options)
    assert not Path("runs").exists()


def test_name_of_a_checkpoint_with_a_metric_that_nobody_logs(capsys):
    message = "each name in checkpoint.filename must be a metric that is logged, .*val/loss, but is 'foo'"
    assert_answered(capsys, message, "--checkpoint.filename", "{epoch}-{foo:.2f}")


def test_checkpoints_of_the_users_own_are_kept_beside_ours(capsys):
    assert run("fit", "--trainer.callbacks+=ModelCheckpoint", "--checkpoint.filename", "{epoch}-{val/loss:.2f}") == 0
    assert len(list(Path("runs").rglob("*.ckpt"))) == 3


def test_callbacks_whose_defaults_are_no_plain_values_can_be_used():
    assert run("fit", "--trainer.callbacks+=Timer", "--trainer.callbacks.duration", "00:01:00:00") == 0
    assert "interval: step" in next(Path("runs").rglob("config.yaml")).read_text()


def test_a_batch_size_is_searched_for_only_before_training(monkeypatch):
    searches = []
    monkeypatch.setattr(BatchSizeFinder, "scale_batch_size", lambda *_: searches.append(1))
    assert run("fit", "--trainer.callbacks+=BatchSizeFinder") == 0
    assert len(searches) == 1


@pytest.mark.parametrize("option", ["--config", "--model", "--trainer.callbacks", "--ckpt_path"])
def test_pipe_in_the_place_of_a_file_is_not_waited_for(option, capsys):
    os.mkfifo("pipe")
    assert_answered(capsys, "must be a regular file, but '.*pipe' is a named pipe", option, "pipe")


@pytest.mark.parametrize(("path", "kind"), [("/dev/zero", "a device"), (".", "a folder")])
def test_checkpoint_that_is_no_file(path, kind, capsys):
    assert_answered(capsys, f"ckpt_path must be a regular file, but '{path}' is {kind}", "--ckpt_path", path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint of two epochs."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("fit") == 0
    return next(folder.rglob("last.ckpt"))


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_checkpoint_runs_nothing(good, command, capsys):
    torch.save({**torch.load(good, weights_only=True), "more": Payload()}, "x.ckpt")
    message = "holds more than data: posix.system; .* with --weights_only false"
    for choice in ([], ["--weights_only", "true"]):
        assert_answered(capsys, message, "--ckpt_path", "x.ckpt", *choice, command=command)
    assert run(command, "--ckpt_path", "x.ckpt", "--weights_only", "false", "--trainer.max_epochs", "3") == 0
    assert Path("executed").exists()


def _without(name):
    return lambda content: content.pop(name)


def _with(**entries):
    return lambda content: content.update(entries)


def _nan(content):
    content["state_dict"]["network.1.weight"].fill_(float("nan"))


def _double(name):
    return lambda content: content.update({name: content[name] * 2})


def _weight(change):
    def changed(content):
        content["state_dict"]["network.1.weight"] = change(content["state_dict"]["network.1.weight"])

    return changed


def _in(*path, value):
    """Puts a value in the place of one deep in the checkpoint."""

    def changed(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return changed


_BATCHES = ("loops", "fit_loop", "epoch_loop.batch_progress")
_GROUP = ("optimizer_states", 0, "param_groups", 0)
_EPOCHS = ("loops", "fit_loop", "epoch_progress", "current")
_STOPPING = ("callbacks", "BestWeightsEarlyStopping{'monitor': 'val/loss', 'mode': 'min'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--checkpoint.mode max", "keeps the highest val/loss, which by its name is better where it is lower"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/accuracy",
            "EarlyStopping waits for a lower val/accuracy, which by its name is better where it is higher",
        ),
    ],
)
def test_a_metric_in_the_wrong_direction_is_warned_of(options, message):
    with pytest.warns(UserWarning, match=message):
        assert run("fit", *options.split()) == 0


INSIDES = {
    "whole numbers": (_weight(Tensor.int), "network.1.weight is torch.int32, not torch.float32"),
    "complex": (_weight(lambda weight: weight.to(torch.complex64)), "network.1.weight is torch.complex64"),
    "sparse": (_weight(Tensor.to_sparse), "network.1.weight is torch.sparse_coo"),
    "no values": (_weight(lambda weight: weight.to("meta")), "network.1.weight has a shape, but no values"),
    "epoch below 0": (_with(epoch=-1), "epoch is -1, which counts nothing"),
    "no number of steps": (_with(global_step=10**30), "global_step is 10{30}, which counts nothing"),
    "half an epoch": (_in(*_EPOCHS, "completed", value=1.5), "current.completed is 1.5, which counts nothing"),
    "loop's list": (_in("loops", "fit_loop", "epoch_loop.state_dict", value=[1]), "is a list, not a mapping"),
    "rate text": (_in(*_GROUP, "lr", value="x"), "param_groups.0.lr is a str, not a number"),
    "rate NaN": (_in(*_GROUP, "lr", value=math.nan), "param_groups.0.lr is nan"),
    "rate below 0": (_in(*_GROUP, "lr", value=-1.0), "an lr below 0"),
    "betas text": (_in(*_GROUP, "betas", value="x"), "param_groups.0.betas is a str"),
    "rate infinite": (_in(*_GROUP, "lr", value=math.inf), "an optimizer's state with an infinite lr"),
    "unknown parameter": (_in("optimizer_states", 0, "state", 99, value={}), "state of 99, which is none of its param"),
    "more batches than the run": (
        _in(*_BATCHES, "current", "ready", value=10**9),
        "more batches in current than can be",
    ),
    "more batches than begun": (_in(*_BATCHES, "total", "completed", value=10**9), "more batches in total than can be"),
    "best value text": (
        _in(*_STOPPING, "best_value", value="x"),
        "must hold best_value of .* as Tensor, but holds str",
    ),
    "best epoch text": (_in(*_STOPPING, "best_epoch", value="x"), "must hold best_epoch of .* as int, but holds str"),
    "reason": (_in(*_STOPPING, "stopping_reason_message", value={}), "stopping_reason_message is a dict, not a str"),
    "two optimizers": (_double("optimizer_states"), "the states of 2 optimizers, but the model has 1"),
    "average of another shape": (
        _in("optimizer_states", 0, "state", 0, "exp_avg", value=torch.ones(3)),
        "can't be restored: RuntimeError",
    ),
    "no average": (_in("optimizer_states", 0, "state", 0, value={"step": torch.tensor(1.0)}), "'exp_avg' is missing"),
    "waiting text": (_in(*_STOPPING, "wait_count", value="x"), "wait_count is a str, not a number"),
    "best nothing": (_in(*_STOPPING, "best_score", value=None), "best_score is a NoneType, not a tensor"),
    "waits nothing": (_in(*_STOPPING, "waits", value=None), "must hold waits of BestWeightsEarlyStopping as dict"),
    "other channels": (_in("ImageData", "mean", value=[0.1] * 3), "must hold a mean and a positive standard deviation"),
    "deviation 0": (_in("ImageData", "std", value=[0.0]), "must hold a mean and a positive standard deviation"),
    "no weights": (_with(state_dict=None), "is not a Lightning checkpoint: it has no state_dict"),
    "NaN": (_nan, "network.1.weight has NaNs"),
    "no optimizer": (_without("optimizer_states"), "holds no optimizer_states to go on with"),
    "another optimizer's": (
        lambda content: content["optimizer_states"][0]["param_groups"].pop(),
        "can't be restored: ValueError: .*parameter groups|holds no state of an optimizer's parameters",
    ),
    "no version": (_without("pytorch-lightning_version"), "can't be restored: 'pytorch-lightning_version' is missing"),
    "version text": (_with(**{"pytorch-lightning_version": "abc"}), "can't be restored: InvalidVersion"),
    "no data": (_with(ImageData=None), "can't be restored"),
    "empty data": (_with(ImageData={}), "can't be restored: 'classes' is missing"),
    "no hyperparameters": (_with(hyper_parameters=None), "its hyper_parameters is a NoneType"),
    "no progress": (_with(loops={"fit_loop": 3}), "doesn't say how far its run has come"),
    "epoch text": (_with(epoch="abc"), "its epoch is a str"),
}


@pytest.mark.parametrize("name", INSIDES)
def test_checkpoint_with_odd_insides(good, name, capsys):
    change, message = INSIDES[name]
    content = torch.load(good, weights_only=True)
    change(content)
    torch.save(content, "x.ckpt")
    assert_answered(capsys, message, "--ckpt_path", "x.ckpt", "--trainer.max_epochs", "3")
    assert not list(Path().glob("runs/**/*.*"))


@pytest.mark.parametrize("content", [torch.zeros(3), [1], None, {}], ids=repr)
def test_file_of_something_else(content, capsys):
    torch.save(content, "x.ckpt")
    assert_answered(capsys, "is not a Lightning checkpoint: it has no state_dict", "--ckpt_path", "x.ckpt")


def test_checkpoint_of_a_run_that_has_ended(good, capsys):
    assert_answered(capsys, "trainer.max_epochs must be above 2, which .* has had, but is 2", "--ckpt_path", str(good))


def test_checkpoint_of_another_optimizer(good, capsys):
    other = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.1", "--trainer.max_epochs", "3"]
    assert_answered(capsys, "the state of another optimizer than SGD: it has .*betas", "--ckpt_path", str(good), *other)


def test_setting_of_a_resumed_run_is_not_the_checkpoints_fault(good, capsys):
    options = ["--model.optimizer.betas", "[1.5,0.9]", "--trainer.max_epochs", "3"]
    assert_answered(capsys, "model.optimizer: Invalid beta parameter", "--ckpt_path", str(good), *options)


def test_refused_checkpoint_stays_as_it_was(good, capsys):
    content = torch.load(good, weights_only=True)
    content["optimizer_states"][0]["param_groups"] = []
    folder = Path("runs/digits_mlp/version_0/checkpoints")
    folder.mkdir(parents=True)
    torch.save(content, folder / "last.ckpt")
    before = (folder / "last.ckpt").read_bytes()
    assert_answered(capsys, "ckpt_path", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert (folder / "last.ckpt").read_bytes() == before


def test_cut_off_checkpoint_names_the_newest_that_can_be_read(good, capsys):
    whole = good.read_bytes()
    Path("last.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("best.ckpt").write_bytes(whole)
    message = "'last.ckpt' is cut off, .*; the newest beside it that can be read is 'best.ckpt'"
    assert_answered(capsys, message, "--ckpt_path", "last.ckpt")


THEIRS = """
from lightning_reg.models import MLP

class Theirs(MLP):
    def __init__(self, broken: int = 0, input_shape: tuple = (1, 8, 8), num_classes: int = 10):
        if broken == 1:
            raise ValueError("a fault of mine")
        super().__init__(input_shape=input_shape, num_classes=num_classes, hidden_sizes=[8])
        self.broken = broken

    def configure_optimizers(self):
        if self.broken == 2:
            raise ValueError("a fault of mine")
        return super().configure_optimizers()

    def training_step(self, batch, batch_idx):
        if self.broken == 3:
            raise ValueError("a fault of mine")
        return super().training_step(batch, batch_idx)
"""


@pytest.mark.parametrize("broken", [1, 2, 3], ids=["made", "set up", "trained"])
def test_fault_in_code_of_the_users_keeps_its_traceback(broken, tmp_path, monkeypatch):
    (tmp_path / "theirs_that_break.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    words = [
        "fit",
        "--model",
        "theirs_that_break.Theirs",
        "--model.broken",
        str(broken),
        "--seed_everything",
        "0",
        *SHORT,
    ]
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the parser's, of which it is the cause
        main([*words, "--data.dataset", "digits"])
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert str(error) == "a fault of mine"
    assert Path(traceback.extract_tb(error.__traceback__)[-1].filename).name == "theirs_that_break.py"


def test_numbers_from_a_start_to_an_end_are_no_size():
    with within_memory("model"):
        assert torch.arange(10**7, 10**7 + 2).tolist() == [10**7, 10**7 + 1]
