"""Tasks are done in warm processes that die alone, and end with whoever started them."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lightning_reg.settings import SettingError
from lightning_reg.studies.cluster import RayExecutor
from lightning_reg.studies.executor import LocalExecutor, WorkerDiedError
from tests.studies.processes import held, hold, is_alive, python, wait_for

pytestmark = pytest.mark.timeout(120)
PATIENCE = 60  # seconds that a task may take on a busy machine


def fail(message):
    raise LookupError(message)


def a_lock():
    return threading.Lock()


def threads():
    import torch

    return torch.get_num_threads()


def test_a_process_stays_warm_and_its_tasks_errors_come_back():
    with LocalExecutor() as executor:
        assert executor.slots == 1
        first = executor.submit(os.getpid).result(PATIENCE)
        with pytest.raises(LookupError, match="nothing here"):
            executor.submit(fail, "nothing here").result(PATIENCE)
        with pytest.raises(TypeError, match="pickle"):
            executor.submit(a_lock).result(PATIENCE)
        assert executor.submit(os.getpid).result(PATIENCE) == first != os.getpid()
    wait_for(lambda: not is_alive(first), seconds=2)


@pytest.mark.slow
def test_slots_are_processes_of_their_own_and_share_the_cores(tmp_path):
    with LocalExecutor(2) as executor:
        tasks = [executor.submit(hold, tmp_path) for _ in range(2)]
        held(tmp_path, 2)  # at the same time
        waiting = executor.submit(threads)
        (tmp_path / "let go").touch()
        assert len({task.result(PATIENCE) for task in tasks}) == 2
        assert waiting.result(PATIENCE) == max(len(os.sched_getaffinity(0)) // 2, 1)


def test_nothing_is_started_before_the_first_task(monkeypatch):
    monkeypatch.setattr("lightning_reg.studies.executor.ProcessPoolExecutor", None)
    before = threading.active_count()
    with LocalExecutor(4):
        assert threading.active_count() == before


@pytest.mark.slow
def test_a_kill_costs_one_task_and_the_next_has_a_new_process(tmp_path):
    with LocalExecutor(2) as executor:
        tasks = {}
        for count in (1, 2):
            task = executor.submit(hold, tmp_path)
            children = dict(held(tmp_path, count))
            (pid,) = set(children) - set(tasks)
            tasks[pid] = task
        victim, survivor = tasks
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="the process that did it was killed"):
            tasks[victim].result(PATIENCE)
        wait_for(lambda: not is_alive(children[victim]), seconds=2)
        new = executor.submit(os.getpid).result(PATIENCE)
        assert new not in tasks
        (tmp_path / "let go").touch()
        assert tasks[survivor].result(PATIENCE) == survivor


def test_a_kill_between_two_tasks_costs_none():
    with LocalExecutor() as executor:
        first = executor.submit(os.getpid).result(PATIENCE)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: not is_alive(first))
        pool = executor._workers[0]._pool
        wait_for(lambda: pool._broken)  # known to the pool a moment later
        assert executor.submit(os.getpid).result(PATIENCE) != first


@pytest.mark.slow
def test_closing_at_once_ends_tasks_and_what_they_started(tmp_path):
    executor = LocalExecutor(2)
    tasks = [executor.submit(hold, tmp_path) for _ in range(3)]
    pids = [pid for pair in held(tmp_path, 2) for pid in pair]
    assert all(map(is_alive, pids))
    start = time.monotonic()
    executor.close(at_once=True)
    wait_for(lambda: not any(map(is_alive, pids)), seconds=2 - (time.monotonic() - start))
    assert all(task.done() for task in tasks)
    assert tasks[2].cancelled()


def test_closing_at_once_ends_a_process_that_is_just_being_started():
    executor = LocalExecutor()
    task = executor.submit(time.sleep, 600)
    executor.close(at_once=True)
    assert task.cancelled() or isinstance(task.exception(PATIENCE), WorkerDiedError)


DRIVER = """
from tests.studies.processes import hold
from lightning_reg.studies.executor import LocalExecutor
if __name__ == "__main__":
    executor = LocalExecutor(2)
    [executor.submit(hold, {folder!r}) for _ in range(2)]
    input()
"""


@pytest.mark.slow
def test_no_worker_outlives_a_killed_driver_by_two_seconds(tmp_path):
    with python(DRIVER.format(folder=str(tmp_path)), stdin=subprocess.PIPE) as driver:
        pids = [pid for pair in held(tmp_path, 2) for pid in pair]
        assert all(map(is_alive, pids))
        driver.kill()
        killed = time.monotonic()
    wait_for(lambda: not any(map(is_alive, pids)), seconds=2 - (time.monotonic() - killed))


@pytest.mark.slow
def test_ctrl_c_reaches_no_task_whoever_it_is_meant_for(tmp_path):
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with python(ignoring + DRIVER.format(folder=str(tmp_path)), stdin=subprocess.PIPE) as driver:
        pids = [pid for pid, _ in held(tmp_path, 2)]
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        (tmp_path / "let go").touch()
        driver.communicate(b"\n", timeout=PATIENCE)
    assert driver.returncode == 0
    wait_for(lambda: not any(map(is_alive, pids)), seconds=2)


def test_jobs_is_checked():
    with pytest.raises(SettingError, match="jobs must be a whole number of at least 1, but is 0"):
        LocalExecutor(0)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match=r"pip install 'lightning-reg\[cluster\]'"):
        RayExecutor()
    with pytest.raises(SettingError, match="gpus_per_run must be in"):
        RayExecutor(gpus_per_run=-1)
