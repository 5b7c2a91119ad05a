"""A folder that holds whole results, its own study's alone, and that one process at a time writes to."""

import errno
import json
import os
from pathlib import Path

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.studies.runs import Measured
from lightning_reg.studies.store import Store, is_disk_full
from tests.studies.helpers import keep, make_runs, open_store


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_result_comes_back_as_it_was(tmp_path):
    store, (run,) = open_store(tmp_path / "study"), make_runs(1)
    assert store.result(run) is None
    measured = Measured({"test/loss": 0.1 + 0.2}, {"train/loss": [(0.0, 1 / 3)]}, {"rest": {"counts": [1, 2]}})
    keep(store, run, measured, 1.5)
    found = open_store(tmp_path / "study").result(run)
    assert (found.metrics, found.curves, found.collected) == (measured.metrics, measured.curves, measured.collected)
    assert (found.variant, found.seed, found.seconds) == ("a", 0, 1.5)
    (tmp_path / "other.txt").touch()
    modes = {path.stat().st_mode for path in [tmp_path / "other.txt", *(tmp_path / "study").rglob("*.json")]}
    assert len(modes) == 1  # whoever may read other files may read these


def test_a_run_that_diverged_has_a_result(tmp_path):
    store, (run,) = open_store(tmp_path / "study"), make_runs(1)
    keep(store, run, Measured({"test/loss": float("nan"), "test/accuracy": float("inf")}))
    assert repr(store.result(run).metrics) == "{'test/loss': nan, 'test/accuracy': inf}"


def test_one_process_at_a_time(tmp_path):
    store = Store(tmp_path / "study", "example")
    with store.locked():
        with (
            pytest.raises(SettingError, match=r"one runs this study in .*study'; let it finish .*--output"),
            Store(tmp_path / "study", "example").locked(),
        ):
            pass
        Store(tmp_path / "study", "example").check()  # reading is everybody's
    with Store(tmp_path / "study", "example").locked():
        pass


def test_another_study_s_folder_is_refused(tmp_path):
    open_store(tmp_path / "study")
    open_store(tmp_path / "study")
    with pytest.raises(SettingError, match=r"output must be a folder of 'other', but .* is of 'example'"):
        Store(tmp_path / "study", "other").check()


def test_a_folder_with_anything_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(SettingError, match="holds something else"):
            Store(folder, "example").check()
    assert tree(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("left", [(".study.lock",), (".study.lock", ".study.json-0123456789abcdef")])
def test_a_folder_that_was_just_being_made_when_its_process_was_killed_is_ours(tmp_path, left):
    for name in left:
        (tmp_path / name).touch()
    with Store(tmp_path, "example").locked():
        assert json.loads((tmp_path / "study.json").read_text())["study"] == "example"
    Store(tmp_path, "example").check()
    with pytest.raises(SettingError, match=r"output must be a folder of 'other', but .* is of 'example'"):
        Store(tmp_path, "other").check()


def test_a_folder_that_cannot_be_made_is_a_setting(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(SettingError, match="output must be a folder that can be written"),
        Store(tmp_path / "file" / "study", "example").locked(),
    ):
        pass


def test_looking_writes_nothing(tmp_path):
    store = Store(tmp_path / "study", "example")
    store.check()
    assert not store.has_result(make_runs(1)[0])
    assert tree(tmp_path) == []


IDENTITIES = {
    "no JSON": ("{", "study.json must be JSON"),
    "a list": ("[]", "study.json' doesn't say of which"),
    "without keys": ("{}", "study.json' doesn't say of which"),
    "binary": (b"\xff\xfe\x00", "study.json must be text in UTF-8"),
    "a later format": ('{"study": "example", "format": 2}', "in format 1, that of this version, but .* is in 2"),
    "a folder": (None, "study.json must be a regular file, but .* is a folder"),
    "a pipe": (os.mkfifo, "study.json must be a regular file, but .* is a named pipe"),
}


def put(path, content):
    if content is None:
        path.mkdir(parents=True)
    elif callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", IDENTITIES)
def test_a_study_file_of_a_stranger_s_folder(tmp_path, case):
    content, message = IDENTITIES[case]
    put(tmp_path / "study.json", content)
    with pytest.raises(SettingError, match=message):
        Store(tmp_path, "example").check()


WHOLE = {"metrics": {"a": 1.0}, "curves": {"a": [[0, 1]]}, "collected": {}, "seconds": 1}
RESULTS = {
    "no JSON": ("{", "result must be JSON"),
    "cut off": (json.dumps(WHOLE)[:20], "result must be JSON"),
    "nested without end": ("[" * 100_000, "result must be JSON"),
    "binary": (b"\xff\xfe\x00", "result must be text in UTF-8"),
    "empty": ("", "result must be JSON"),
    "a list": ("[1]", r"result must have metrics by name, but is \[1\]"),
    "without keys": ("{}", "result must have metrics by name, but has nothing"),
    "metrics null": ({"metrics": None}, "result must have metrics by name, but has nothing"),
    "metrics a list": ({"metrics": [1]}, r"result must have metrics by name, but has \[1\]"),
    "a metric of text": ({"metrics": {"a": "much"}}, "result must have a number as metrics.a, but has 'much'"),
    "a metric too large": ('{"metrics": {"a": 1' + "0" * 400 + "}}", "metrics.a, but has one too large"),
    "curves null": ({"curves": None}, "result must have curves by name"),
    "a curve null": ({"curves": {"a": None}}, "result must have a list as curves.a, but has nothing"),
    "a point of three": ({"curves": {"a": [[1, 2, 3]]}}, "result must have pairs of epoch and value in curves.a"),
    "a point of text": ({"curves": {"a": [[1, "x"]]}}, "result must have a number as curves.a, but has 'x'"),
    "collected text": ({"collected": "all"}, "result must have collected by name, but has 'all'"),
    "a name that no file can hold": (
        '{"metrics": {"a\\ud800": 1}}',
        "result must be JSON, but .* surrogates not allowed",
    ),
    "an infinite epoch": ({"curves": {"a": [[float("inf"), 1]]}}, "a finite number as curves.a, but has inf"),
    "seconds NaN": ({"seconds": float("nan")}, "result must have a finite number as seconds, but has nan"),
    "weights null": ({"collected": {"weights": None}}, "result must have collected.weights by name, but has nothing"),
    "edges left out": ({"collected": {"weights": {}}}, "must have a list as collected.weights.edges, but has nothing"),
    "an edge too few": (
        {"collected": {"weights": {"edges": [0], "counts": [1], "zero_fraction": 0}}},
        "must have 2 numbers as collected.weights.edges, but has 1",
    ),
    "zeros without a share": (
        {"collected": {"weights": {"edges": [0, 1], "counts": [1], "zero_fraction": float("nan")}}},
        "must have a finite number as collected.weights.zero_fraction, but has nan",
    ),
    "layers a list": (
        {"collected": {"activations": {"steps": [0], "layers": []}}},
        r"must have collected.activations.layers by name, but has \[\]",
    ),
    "a step too few": (
        {"collected": {"activations": {"steps": [0], "layers": {"0": {"mean": [0.0], "std": []}}}}},
        "must have 1 number as collected.activations.layers.0.std, but has 0",
    ),
    "no predictions": (
        {"collected": {"predictions": {"targets": [1]}}},
        "must have a list as collected.predictions.classes, but has nothing",
    ),
    "a prediction of text": (
        {"collected": {"predictions": {"targets": [1], "values": ["x"]}}},
        "must have a number as collected.predictions.values, but has 'x'",
    ),
    "reload empty": (
        {"collected": {"reload": {}}},
        "must have a number as collected.reload.largest_difference, but has nothing",
    ),
    "decomposition empty": (
        {"collected": {"decomposition": {}}},
        "must have a number as collected.decomposition.bias_squared, but has nothing",
    ),
    "seconds left out": ({"seconds": None}, "result must have a number as seconds, but has nothing"),
    "a folder": (None, "result must be a regular file, but .* is a folder"),
    "a pipe": (os.mkfifo, "result must be a regular file, but .* is a named pipe"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "result must be a file that exists"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", RESULTS)
def test_a_result_that_somebody_changed(tmp_path, case):
    content, message = RESULTS[case]
    store, (run,) = open_store(tmp_path), make_runs(1)
    store.prepare(run)
    put(
        store.run_folder(run) / "result.json",
        json.dumps({**WHOLE, **content}) if isinstance(content, dict) else content,
    )
    assert store.has_result(run)
    with pytest.raises(SettingError, match=message) as error:
        store.result(run)
    assert str(error.value).endswith(f"; remove '{store.run_folder(run) / 'result.json'}', and its run is done again")
    assert len(str(error.value).replace(str(tmp_path), "")) < 400


def test_what_an_attempt_left_is_gone_before_the_next(tmp_path):
    store, (run,) = open_store(tmp_path / "study"), make_runs(1)
    store.prepare(run)
    (store.run_folder(run) / "checkpoints").mkdir()
    (store.run_folder(run) / "checkpoints" / "best.ckpt").touch()
    store.write_failure(run, "why", "where")
    store.prepare(run)
    assert list(store.run_folder(run).iterdir()) == []
    store.discard(run)
    assert not store.run_folder(run).exists()
    store.discard(run)


def test_a_full_disk_is_recognized_behind_other_errors():
    error = RuntimeError("couldn't save")
    assert not is_disk_full(error, Path())
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_disk_full(error, Path())
    assert not is_disk_full(OSError(errno.ENOENT, "No such file"), Path())


def test_torch_s_error_on_a_full_disk_is_told_by_the_disk(tmp_path, monkeypatch):
    error = RuntimeError("unexpected pos 64 vs 0")
    assert not is_disk_full(error, tmp_path)
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert is_disk_full(error, tmp_path)
    assert not is_disk_full(ValueError("anything else"), tmp_path)


def test_a_file_in_the_place_of_the_runs_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SettingError, match=r"output must be a folder that can be written, but is .*Not a directory"):
        Store(tmp_path, "example").prepare(make_runs(1)[0])
