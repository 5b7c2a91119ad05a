"""Every run is recorded once, whatever happens around it."""

import errno
import os
import signal
import time

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.studies import store as store_module
from lightning_reg.studies.execution import execute
from lightning_reg.studies.executor import InProcessExecutor, LocalExecutor
from lightning_reg.studies.runs import Measured
from lightning_reg.studies.store import Store
from tests.studies.helpers import (
    collect_a_lock,
    die_at_two,
    do,
    do_in_pairs,
    fail_once,
    make_runs,
    noted,
    open_store,
)
from tests.studies.processes import is_alive, python, wait_for

pytestmark = pytest.mark.timeout(180)


def run(store, perform, runs, executor=None, **settings):
    with executor or InProcessExecutor() as used:
        return execute(runs, store, perform, used, quiet=True, **settings)


def accuracies(store, runs):
    return [store.result(run).metrics["test/accuracy"] for run in runs]


def test_every_run_is_done_once_and_not_again(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs()
    assert run(store, do, runs) == []
    assert run(store, do, [*runs, *make_runs(6)[4:]]) == []
    assert [seed for seed, _ in noted(store)] == [0, 1, 2, 3, 4, 5]
    assert accuracies(store, runs) == [0.0, 0.1, 0.2, 0.3]


def test_a_failed_run_is_told_the_others_finish_and_it_is_tried_again_next_time(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs()
    (failure,) = run(store, fail_once, runs)
    assert (failure.variant, failure.seed, failure.message) == ("a", 1, "ValueError: no luck")
    assert [store.has_result(run) for run in runs] == [True, False, True, True]
    text = (store.run_folder(runs[1]) / "failure.txt").read_text()
    assert "fail_once" in text
    assert "Traceback" in text
    assert run(store, fail_once, runs) == []
    assert sorted(seed for seed, _ in noted(store)) == [0, 1, 1, 2, 3]
    assert {path.name for path in store.run_folder(runs[1]).iterdir()} == {"result.json"}


def test_a_setting_that_cannot_be_used_is_told_without_what_the_parser_makes_of_it(tmp_path):
    def refuse(run, folder):
        try:
            raise SettingError("root must be a folder")
        except SettingError as error:
            raise ValueError("doesn't validate against any of the subtypes") from error

    (failure,) = run(open_store(tmp_path / "study"), refuse, make_runs(1))
    assert failure.message == "root must be a folder"


def test_a_result_that_cannot_be_written_down_is_the_run_s_failure(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs(1)
    (failure,) = run(store, collect_a_lock, runs)
    assert failure.message == "TypeError: Object of type lock is not JSON serializable"


def test_collected_results_that_no_report_can_read_are_the_run_s_failure(tmp_path):
    store = open_store(tmp_path / "study")
    (failure,) = run(store, lambda *_: Measured({"test/accuracy": 1.0}, collected={"weights": 3}), make_runs(1))
    assert failure.message == "result must have collected.weights by name, but has 3"


def test_a_metric_that_is_not_measured_is_told_after_one_run(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs()
    with pytest.raises(SettingError, match="metric must be one of test/accuracy, but is 'test/acuracy'; did you mean"):
        run(store, do, runs, metric="test/acuracy")
    assert [seed for seed, _ in noted(store)] == [0]


def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_of_what_isn_t(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs(3)

    def interrupted(run, folder):
        if run.seed == 1:
            (folder / "checkpoint").touch()
            raise KeyboardInterrupt
        return do(run, folder)

    with pytest.raises(KeyboardInterrupt):
        run(store, interrupted, runs)
    assert [path.name for path in (store.folder / "runs").iterdir()] == [runs[0].key]
    assert run(store, do, runs) == []
    assert [seed for seed, _ in noted(store)] == [0, 1, 2]


@pytest.mark.parametrize("moment", ["prepare", "write_result", "write_failure"])
def test_ctrl_c_at_any_moment_of_the_driver_leaves_whole_results_or_none(tmp_path, monkeypatch, moment):
    store, runs = open_store(tmp_path / "study"), make_runs(2)
    whole = getattr(Store, moment)
    for when in ("before", "after"):

        def interrupted(*arguments, when=when):
            if when == "after":
                whole(*arguments)
            signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(Store, moment, interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(store, fail_once if moment == "write_failure" else do, [runs[1]])
        found = [path.name for path in store.folder.glob("runs/*/*")]
        assert found == (["result.json"] if (moment, when) == ("write_result", "after") else [])
        (store.folder / "log.txt").unlink(missing_ok=True)
    assert run(store, do, runs) == []
    assert accuracies(store, runs) == [0.0, 0.1]


@pytest.mark.parametrize("where", ["result", "training", "folder"])
def test_a_full_disk_ends_the_study_and_loses_nothing(tmp_path, monkeypatch, where):
    store, runs = open_store(tmp_path / "study"), make_runs()
    full = OSError(errno.ENOSPC, "No space left on device")
    write, prepare = store_module.write_atomically, Store.prepare
    is_full = True

    def write_or_not(path, text):
        if where == "result" and is_full and path.parent.name == runs[2].key:
            raise full
        write(path, text)

    def prepare_or_not(self, run):
        if where == "folder" and is_full and run.seed == 2:
            raise full
        prepare(self, run)

    def train_or_not(run, folder):
        if where == "training" and is_full and run.seed == 2:
            raise RuntimeError("the checkpoint couldn't be saved") from full
        return do(run, folder)

    monkeypatch.setattr(store_module, "write_atomically", write_or_not)
    monkeypatch.setattr(Store, "prepare", prepare_or_not)
    with pytest.raises(SettingError, match=r"^the disk of .* is full; what is finished is kept"):
        run(store, train_or_not, runs)
    assert [store.has_result(run) for run in runs] == [True, True, False, False]
    assert not store.run_folder(runs[2]).exists()  # it isn't the run's fault
    is_full = False
    assert run(store, train_or_not, runs) == []
    assert accuracies(store, runs) == [0.0, 0.1, 0.2, 0.3]


def test_nothing_is_done_where_all_is_done(tmp_path, monkeypatch):
    store, runs = open_store(tmp_path / "study"), make_runs()
    run(store, do, runs)
    monkeypatch.setattr("lightning_reg.studies.executor.ProcessPoolExecutor", None)
    assert run(store, do, runs, LocalExecutor(4)) == []


@pytest.mark.slow
def test_jobs_share_the_runs(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs()
    assert run(store, do_in_pairs, runs, LocalExecutor(2)) == []
    done = noted(store)
    assert sorted(seed for seed, _ in done) == [0, 1, 2, 3]
    assert len({pid for _, pid in done}) == 2
    assert os.getpid() not in {pid for _, pid in done}
    assert accuracies(store, runs) == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_worker_that_is_killed_is_told_and_the_others_finish(tmp_path, jobs):
    store, runs = open_store(tmp_path / "study"), make_runs(4)
    (failure,) = run(store, die_at_two, runs, LocalExecutor(jobs))
    assert (failure.seed, failure.message) == (2, "the process that did it was killed")
    assert [store.has_result(run) for run in runs] == [True, True, False, True]
    assert run(store, do, runs) == []
    assert sorted(seed for seed, _ in noted(store)) == [0, 1, 2, 2, 3]


DRIVER = """
from tests.studies.helpers import *
from lightning_reg.studies.execution import execute
from lightning_reg.studies.executor import LocalExecutor
if __name__ == "__main__":
    store = Store({folder!r}, "example")
    with store.locked(), LocalExecutor({jobs}) as executor:
        execute(make_runs(6), store, do_the_first, executor, quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_kill_9_of_the_driver_repeats_nothing_that_is_finished_and_frees_the_folder(tmp_path, jobs):
    store, runs = Store(tmp_path / "study", "example"), make_runs(6)
    with python(DRIVER.format(folder=str(store.folder), jobs=jobs)) as driver:
        wait_for(lambda: len(noted(store)) > jobs)
        wait_for(lambda: store.has_result(runs[0]))
        with pytest.raises(SettingError, match="output must be a folder that no other process is at"), store.locked():
            pass
        driver.kill()
    killed = time.monotonic()
    workers = {pid for _, pid in noted(store)}
    before = noted(store)
    with store.locked():  # at once
        wait_for(lambda: not any(map(is_alive, workers)), seconds=2 - (time.monotonic() - killed))
        assert run(store, do, runs) == []
    assert sorted(seed for seed, _ in noted(store)[len(before) :]) == [1, 2, 3, 4, 5]
    assert accuracies(store, runs) == [run.seed / 10 for run in runs]
    assert {path.name for path in store.folder.glob("runs/*/*")} == {"result.json"}
