"""A folder that holds whole results, its own study's alone."""

import errno
import os

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.studies.runs import Measured
from lightning_reg.studies.store import Store, is_full_disk, write_atomically
from tests.studies.helpers import make_runs, open_store


def test_a_result_comes_back_as_it_was(tmp_path):
    store, (run,) = open_store(tmp_path / "study"), make_runs(1)
    store.run_folder(run).mkdir(parents=True)
    assert store.result(run) is None
    measured = Measured({"test/loss": 0.1 + 0.2}, {"train/loss": [(0.0, 1 / 3)]}, {"weights": {"counts": [1, 2]}})
    store.write_result(run, measured, 1.5)
    found = open_store(tmp_path / "study").result(run)
    assert (found.metrics, found.curves, found.collected) == (measured.metrics, measured.curves, measured.collected)
    assert (found.variant, found.seed, found.seconds) == ("a", 0, 1.5)
    (tmp_path / "other.txt").touch()
    modes = {path.stat().st_mode for path in [tmp_path / "other.txt", *(tmp_path / "study").rglob("*.json")]}
    assert len(modes) == 1  # whoever may read other files may read these


def test_another_study_s_folder_is_refused(tmp_path):
    open_store(tmp_path / "study")
    open_store(tmp_path / "study")
    with pytest.raises(SettingError, match=r"output must be a folder of 'other', but .* is of 'example'"):
        Store(tmp_path / "study", "other").open()


def test_a_folder_with_anything_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SettingError, match="holds something else"):
        Store(tmp_path, "example").open()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(SettingError, match="holds something else"):
        Store(tmp_path / "thesis.txt", "example").open()


def test_a_folder_that_cannot_be_made_is_a_setting(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="output must be a folder that can be written"):
        Store(tmp_path / "file" / "study", "example").open()


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_an_attempt_left_is_cleared_but_not_who_is_at_it(tmp_path):
    store, (run,) = open_store(tmp_path / "study"), make_runs(1)
    with store.claims.take(store.run_folder(run)) as claim:
        (store.run_folder(run) / "checkpoints").mkdir()
        (store.run_folder(run) / "checkpoints" / "best.ckpt").touch()
        store.write_failure(run, "why", "where")
        store.clear(run)
        assert [path.name for path in store.run_folder(run).iterdir()] == ["claim-0"]
        assert not claim.is_lost


def test_a_full_disk_is_recognized_behind_other_errors():
    error = RuntimeError("couldn't save")
    assert not is_full_disk(error)
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_full_disk(error)
    assert not is_full_disk(OSError(errno.ENOENT, "No such file"))


def test_torch_s_error_on_a_full_disk_is_told_by_the_disk(tmp_path, monkeypatch):
    store = open_store(tmp_path / "study")
    assert store.full(RuntimeError("unexpected pos 64 vs 0")) is None
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert "is full" in str(store.full(RuntimeError("unexpected pos 64 vs 0")))
    assert store.full(ValueError("anything else")) is None
