"""Runs are done once, whatever happens around them."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.studies import store as store_module
from lightning_reg.studies.execution import execute
from lightning_reg.studies.runs import Measured
from tests.conftest import REPOSITORY
from tests.studies.helpers import die_at_two, do, do_slowly, fail_once, make_runs, note, noted, open_store


def run(store, perform, runs, **settings):
    return execute(runs, store, perform, poll=0.05, quiet=True, **settings)


def test_every_run_is_done_once_and_not_again(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs()
    assert run(store, do, runs) == []
    assert run(store, do, [*runs, *make_runs(6)[4:]]) == []
    assert [seed for seed, _ in noted(store)] == [0, 1, 2, 3, 4, 5]
    assert [store.result(each).metrics["test/accuracy"] for each in runs] == [0.0, 0.1, 0.2, 0.3]


def test_a_failed_run_is_told_the_others_finish_and_it_is_tried_again_next_time(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs()
    (failure,) = run(store, fail_once, runs)
    assert (failure.variant, failure.seed, failure.message) == ("a", 1, "ValueError: no luck")
    assert [store.has_result(each) for each in runs] == [True, False, True, True]
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


def test_ctrl_c_gives_the_run_back(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs(2)

    def interrupted(run, folder):
        if run.seed == 1:
            raise KeyboardInterrupt
        return do(run, folder)

    with pytest.raises(KeyboardInterrupt):
        run(store, interrupted, runs)
    assert not list(store.run_folder(runs[1]).glob("claim-*"))
    assert run(store, do, runs) == []
    assert [seed for seed, _ in noted(store)] == [0, 1]


@pytest.mark.slow
def test_jobs_share_the_runs(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs()
    assert run(store, do_slowly, runs, jobs=2) == []
    done = noted(store)
    assert sorted(seed for seed, _ in done) == [0, 1, 2, 3]
    assert len({pid for _, pid in done}) == 2
    assert os.getpid() not in {pid for _, pid in done}


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_and_the_others_finish(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs(3)
    (failure,) = run(store, die_at_two, runs, jobs=2)
    assert (failure.seed, failure.message) == (2, "the process that did it was killed")
    assert store.has_result(runs[0])
    assert store.has_result(runs[1])


SHARED = """
from tests.studies.helpers import *
from lightning_reg.studies.execution import execute
execute(make_runs(6), open_store({folder!r}), {perform}, poll=0.05, quiet=True, jobs={jobs})
"""


def started(folder, perform, jobs=1):
    code = SHARED.format(folder=str(folder), perform=perform, jobs=jobs)
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_9_repeats_nothing_that_is_finished(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs(6)
    process = started(store.folder, "do_slowly")
    wait_for(lambda: len(noted(store)) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [store.has_result(each) for each in runs] == [True, False, False, False, False, False]
    assert list(store.run_folder(runs[1]).glob("claim-*"))
    assert run(store, do, runs) == []  # at once: the process is known to be dead
    assert sorted(seed for seed, _ in noted(store)) == [0, 1, 1, 2, 3, 4, 5]
    assert all(store.result(each).metrics["test/accuracy"] == each.seed / 10 for each in runs)


@pytest.mark.slow
def test_jobs_whose_parent_is_killed_finish_what_they_are_at(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs(6)
    process = started(store.folder, "do_slowly", jobs=2)
    wait_for(lambda: noted(store))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(store, do, runs) == []
    assert sorted(seed for seed, _ in noted(store)) == [0, 1, 2, 3, 4, 5]
    assert os.getpid() in {pid for _, pid in noted(store)}


def test_processes_that_share_a_folder_do_each_run_once_and_end_with_all(tmp_path):
    store, runs = open_store(tmp_path / "study"), make_runs(6)
    process = started(store.folder, "do_slowly")
    wait_for(lambda: noted(store))
    assert run(store, do_slowly, runs) == []
    assert all(map(store.has_result, runs))  # those of the other process, too: it was waited for
    process.wait()
    assert sorted(seed for seed, _ in noted(store)) == [0, 1, 2, 3, 4, 5]
    assert len({pid for _, pid in noted(store)}) == 2


def test_who_lost_its_claim_writes_nothing(tmp_path):
    store, (only,) = open_store(tmp_path / "study", stale_after=0.1), make_runs(1)

    def taken_over(run, folder):
        note(run, folder)
        (folder / "claim-1").touch()  # another process, that took us for dead
        store.write_result(run, Measured({"test/accuracy": 0.25}), 1.0)
        return Measured({"test/accuracy": 0.75})

    assert run(store, taken_over, [only]) == []
    assert store.result(only).metrics["test/accuracy"] == 0.25
    assert (store.run_folder(only) / "claim-1").exists()


@pytest.mark.parametrize("where", ["result", "training"])
def test_a_full_disk_ends_the_study_and_loses_nothing(tmp_path, monkeypatch, where):
    store, runs = open_store(tmp_path / "study"), make_runs()
    full = OSError(errno.ENOSPC, "No space left on device")
    write = store_module.write_atomically
    is_full = True

    def write_or_not(path, text):
        if where == "result" and is_full and path.parent.name == runs[2].key:
            raise full
        write(path, text)

    def train_or_not(run, folder):
        if where == "training" and is_full and run.seed == 2:
            raise RuntimeError("the checkpoint couldn't be saved") from full
        return do(run, folder)

    monkeypatch.setattr(store_module, "write_atomically", write_or_not)
    with pytest.raises(SettingError, match=r"the disk of .* is full; what is finished is kept"):
        run(store, train_or_not, runs)
    assert [store.has_result(each) for each in runs] == [True, True, False, False]
    assert not (store.run_folder(runs[2]) / "failure.txt").exists()  # it isn't the run's fault
    is_full = False
    assert run(store, train_or_not, runs) == []
    assert [store.result(each).metrics["test/accuracy"] for each in runs] == [0.0, 0.1, 0.2, 0.3]


def test_jobs_is_checked(tmp_path):
    with pytest.raises(SettingError, match="jobs must be a whole number of at least 1, but is 0"):
        run(open_store(tmp_path / "study"), do, make_runs(), jobs=0)


def test_nothing_is_started_where_all_is_done(tmp_path, monkeypatch):
    store, runs = open_store(tmp_path / "study"), make_runs()
    run(store, do, runs)
    monkeypatch.setattr(multiprocessing, "get_context", None)
    assert run(store, do, runs, jobs=4) == []
