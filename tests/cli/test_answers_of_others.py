"""Settings of Lightning's own parts that it doesn't check itself are answered by one sentence, and write nothing."""

from pathlib import Path

import pytest

from tests.cli.helpers import assert_answered, folders, run

LOGS = "--trainer.logger TensorBoardLogger --trainer.logger.save_dir runs --trainer.logger"
TABLE = "--trainer.logger CSVLogger --trainer.logger.save_dir runs --trainer.logger"
PRUNES = "--trainer.callbacks+=ModelPruning --trainer.callbacks.pruning_fn l1_unstructured --trainer.callbacks.amount"
COUNTS = "--trainer.callbacks+=ThroughputMonitor --trainer.callbacks.batch_size_fn builtins.len --trainer.callbacks"
SAVES = "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks"

SETTINGS = [
    (f"{LOGS}.version -1", "trainer.logger.version must be a whole number of at least 0, but is -1"),
    (f"{LOGS}.max_queue -1", "trainer.logger.max_queue must be a whole number of at least 0, but is -1"),
    (f"{LOGS}.flush_secs abc", "trainer.logger.flush_secs must be a whole number of at least 0, but is 'abc'"),
    (f"{LOGS}.dict_kwargs.flush_secs abc", "trainer.logger.flush_secs must be a whole number of .*'abc'"),
    (f"{LOGS}.dict_kwargs.foo 1", r"foo is no setting of TensorBoardLogger \(trainer.logger\)"),
    (f"{LOGS}.filename_suffix ../x", "trainer.logger.filename_suffix must be a part of a file's name, but is '../x'"),
    (f"{TABLE}.flush_logs_every_n_steps 0", "flush_logs_every_n_steps must be a whole number of at least 1, but is 0"),
    (f"{COUNTS}.window_size 0", "trainer.callbacks.window_size must be a whole number of at least 1, but is 0"),
    (f"{COUNTS}.dict_kwargs.window_size -2", "trainer.callbacks.window_size must be a whole number of .* is -2"),
    (f"{PRUNES} -1", "trainer.callbacks.amount must be a whole number of at least 0, but is -1"),
    (f"{PRUNES} 1.5", "trainer.callbacks.amount is 1.5: amount=1.5 should either be a float in the range"),
    (
        "--trainer.profiler SimpleProfiler --trainer.profiler.dirpath out --trainer.profiler.filename ../../z",
        "trainer.profiler.filename must be a name within the run's folder, but is '../../z'",
    ),
    (
        "--trainer.callbacks+=OnExceptionCheckpoint --trainer.callbacks.dirpath x --trainer.callbacks.filename ../z",
        "trainer.callbacks.filename must be a name within the run's folder, but is '../z'",
    ),
    (f"{SAVES}.filename {{foo", "trainer.callbacks.filename must have names of metrics in braces, but is '{foo'"),
    (f"{SAVES}.monitor foo", "trainer.callbacks.monitor must be a metric that is logged, .*val/loss, but is 'foo'"),
    (f"{SAVES}.filename {{foo}}", "each name in trainer.callbacks.filename must be a metric .*, but is 'foo'"),
    ("--trainer.plugins LSFEnvironment", "error: trainer.plugins: Did not find the environment variable `LSB_"),
    (
        "--trainer.callbacks+=WeightAveraging --trainer.callbacks.device foo",
        "trainer.callbacks.device is 'foo': Expected one of cpu",
    ),
    ("--trainer.logger DummyLogger", "error: it must hold that log_dir is not None"),
]


@pytest.mark.parametrize(("options", "message"), SETTINGS, ids=[options for options, _ in SETTINGS])
def test_setting_of_a_part_of_lightning(options, message, capsys):
    assert_answered(capsys, message, *options.split())
    assert not Path("runs").exists()


@pytest.mark.parametrize("options", [f"{LOGS}.flush_secs 10", f"{LOGS}.version 3"])
def test_setting_that_can_be_used(options):
    assert run("fit", *options.split()) == 0
    assert len(list(Path("runs").rglob("best.ckpt"))) == 1


def test_callback_whose_state_cannot_be_loaded_is_named_behind_the_fit(capsys):
    message = "'runs.*best.ckpt' can't be restored: AttributeError: 'SpikeDetection' object has no attribute 'running'"
    assert_answered(capsys, message, "--trainer.callbacks+=SpikeDetection")
    assert folders() == ["version_0"]  # the fit itself is there
