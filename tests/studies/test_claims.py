"""Who does which run."""

import json
import multiprocessing
import os
import threading
import time

import pytest

from lightning_reg.studies.claims import Claims


def pretend(folder, *, host=None, pid=None):
    """Leaves a claim as another process would."""
    with Claims().take(folder):
        content = json.loads((folder / "claim-0").read_text())
    content |= {"host": host or content["host"], "pid": os.getpid() if pid is None else pid}
    (folder / "claim-0").write_text(json.dumps(content))


def dead_pid():
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    return process.pid


def test_a_run_is_one_process_s_and_free_afterwards(tmp_path):
    claims = Claims()
    with claims.take(tmp_path):
        assert claims.take(tmp_path) is None
        assert Claims().take(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    with claims.take(tmp_path) as claim:
        assert not claim.is_lost


@pytest.mark.parametrize("stale_after", [60.0])
def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path, stale_after):
    pretend(tmp_path, pid=dead_pid())
    with Claims(stale_after=stale_after).take(tmp_path) as claim:
        assert claim is not None
        assert Claims().take(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_another_machine_s_process_is_dead_when_it_is_not_heard_of(tmp_path):
    pretend(tmp_path, host="elsewhere", pid=1)
    claims = Claims(stale_after=0.2)
    assert claims.take(tmp_path) is None  # however old the file is: clocks differ
    time.sleep(0.1)
    os.utime(tmp_path / "claim-0")  # a sign of life
    assert claims.take(tmp_path) is None
    time.sleep(0.15)
    assert claims.take(tmp_path) is None
    time.sleep(0.15)
    with claims.take(tmp_path) as claim:
        assert claim is not None


def test_a_claim_is_kept_alive_by_its_heartbeat(tmp_path):
    watcher = Claims(stale_after=0.2)
    with Claims(heartbeat=0.05).take(tmp_path):
        for _ in range(5):
            assert watcher.take(tmp_path) is None
            time.sleep(0.08)


def test_an_owner_that_slept_too_long_knows_that_it_lost(tmp_path):
    watcher = Claims(stale_after=0.1)
    with Claims(heartbeat=60).take(tmp_path) as sleeper:
        assert watcher.take(tmp_path) is None
        time.sleep(0.15)
        other = watcher.take(tmp_path)
        with other:
            assert sleeper.is_lost
            assert not other.is_lost
            sleeper.__exit__(None, None, None)
            assert not other.is_lost  # what the sleeper gives back isn't the other's
            assert Claims().take(tmp_path) is None


def test_a_claim_that_says_nothing_yet_is_alive(tmp_path):
    (tmp_path / "claim-0").touch()
    assert Claims().take(tmp_path) is None


def test_only_one_takes_a_dead_claim_over(tmp_path):
    pid = dead_pid()
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        pretend(folder, pid=pid)
        barrier = threading.Barrier(4)
        taken = []

        def take(folder=folder, barrier=barrier, taken=taken):
            barrier.wait()
            claim = Claims().take(folder)
            if claim is not None:
                taken.append(claim)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(taken) == 1
