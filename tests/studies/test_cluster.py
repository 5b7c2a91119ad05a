"""Runs on the machines of a cluster, which share nothing with the driver and may be lost."""

import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lightning_reg.cli import main
from lightning_reg.settings import SettingError
from lightning_reg.studies.cluster import RayExecutor
from lightning_reg.studies.execution import execute
from lightning_reg.studies.executor import InProcessExecutor, WorkerDiedError
from tests.conftest import REPOSITORY
from tests.studies.helpers import do, do_elsewhere, make_runs, open_store
from tests.studies.processes import die, held, hold, is_alive, python, wait_for

pytest.importorskip("ray", reason="Ray isn't installed: pip install 'lightning-reg[cluster]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
PATIENCE = 100  # seconds that a task may take on a busy machine


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    with ExitStack() as stack:
        made = Cluster()
        stack.callback(made.shutdown)
        for _ in range(2):
            made.add_node(num_cpus=1, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20)
        yield made


def fail(message):
    raise LookupError(message)


def test_tasks_errors_come_back_and_closing_at_once_ends_what_is_running(cluster, tmp_path):
    with RayExecutor(cluster.address) as executor:
        assert executor.slots == 2
        assert not executor.is_local
        assert executor.submit(max, 1, 2).result(PATIENCE) == 2
        with pytest.raises(LookupError, match="nothing here"):
            executor.submit(fail, "nothing here").result(PATIENCE)
        executor.submit(hold, tmp_path)
        ((pid, child),) = held(tmp_path, 1)
        os.kill(child, signal.SIGKILL)
        executor.close(at_once=True)
    wait_for(lambda: not is_alive(pid), seconds=5)


def test_a_run_whose_process_is_killed_is_done_again_and_one_that_always_dies_is_told(cluster, tmp_path):
    (tmp_path / "log").mkdir()
    with RayExecutor(cluster.address) as executor:
        assert executor.submit(die, tmp_path / "log", 1).result(PATIENCE) == "alive"
        assert len(list((tmp_path / "log").iterdir())) == 2
        with pytest.raises(WorkerDiedError, match="the process that did it was killed, or its machine is gone"):
            executor.submit(die, tmp_path / "log", 100).result(PATIENCE)
        assert len(list((tmp_path / "log").iterdir())) == 2 + 4


DRIVER = """
from tests.studies.processes import hold
from lightning_reg.studies.cluster import RayExecutor
executor = RayExecutor({address!r})
[executor.submit(hold, {folder!r}) for _ in range(2)]
input()
"""


def test_no_task_outlives_a_killed_driver_by_two_seconds(cluster, tmp_path):
    code = DRIVER.format(address=cluster.address, folder=str(tmp_path))
    with python(code, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        holding = held(tmp_path, 2)
        for _, child in holding:
            os.kill(child, signal.SIGKILL)
        assert [is_alive(pid) for pid, _ in holding] == [True, True]
        driver.kill()
        killed = time.monotonic()
    wait_for(lambda: not any(is_alive(pid) for pid, _ in holding), seconds=2 - (time.monotonic() - killed))
    assert not [pid for pid, _ in holding if is_alive(pid)]


def test_what_the_cluster_does_not_have_is_told(cluster):
    with pytest.raises(SettingError, match="gpus_per_run must be at most what a machine of the cluster has, but is 1"):
        RayExecutor(cluster.address, gpus_per_run=1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "nowhere", "ray://127.0.0.1:1", ""])
def test_an_address_of_no_cluster(address):
    with pytest.raises(
        SettingError, match="cluster must be auto or the address of a running Ray cluster, but is"
    ) as error:
        RayExecutor(address)
    assert "\n" not in str(error.value)


def test_a_study_comes_to_the_same_on_a_cluster_and_here(cluster, monkeypatch):
    base = [str(REPOSITORY / "configs" / "digits_mlp.yaml"), {"trainer.max_epochs": 1, "data.train_size": 100}]
    study = {"base": base, "variants": {"plain": {}}, "seeds": 1}
    Path("small.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setattr("lightning_reg.cli.study.write_report", lambda _, folder: folder)
    monkeypatch.setattr("lightning_reg.cli.options.LocalExecutor", lambda _: InProcessExecutor())
    assert main(["study", "small.yaml", "--output", "there", "--cluster", cluster.address]) == 0
    assert main(["study", "small.yaml", "--output", "here"]) == 0
    there, here = (json.loads(next(Path(name).glob("runs/*/result.json")).read_text()) for name in ("there", "here"))
    assert there["metrics"] == here["metrics"]
    assert there["curves"] == here["curves"]


def test_all_runs_are_done_and_recorded_once_when_a_node_is_killed_in_the_middle(cluster, tmp_path):
    store, signals = open_store(tmp_path / "study"), tmp_path / "signals"
    signals.mkdir()
    (tmp_path / "base.yaml").write_text("trainer:\n  max_epochs: 3\n")
    command = ("--config", str(tmp_path / "base.yaml"), "--model.drop_prob", "0.5")
    runs = [replace(run, command=command, arguments={"signals": str(signals)}) for run in make_runs()]
    _, lost = cluster.list_all_nodes()

    def begun():
        return [tuple(path.name.split()) for path in signals.glob("* * *")]

    with RayExecutor(cluster.address) as executor:
        assert executor.slots == 2
        submit = executor.submit

        def submit_and_kill(*task):
            """Kills a node when both are at a run."""
            future = submit(*task)
            if task[2].seed == 1:
                wait_for(lambda: len(begun()) == 2)
                (there,) = (int(pid) for _, node, pid in begun() if node == lost.node_id)
                cluster.remove_node(lost, allow_graceful=False)
                wait_for(lambda: not is_alive(there))
                (signals / "let go").touch()
            return future

        executor.submit = submit_and_kill
        assert execute(runs, store, do_elsewhere, executor, quiet=True) == []
        wait_for(lambda: executor.slots == 1)
    interrupted = {seed for seed, node, _ in begun() if node == lost.node_id}
    assert len(interrupted) == 1
    assert sorted(seed for seed, _, _ in begun()) == sorted([*"0123", *interrupted])
    results = [store.result(run) for run in runs]
    assert [result.metrics["test/accuracy"] for result in results] == [0.0, 0.1, 0.2, 0.3]
    for result in results:
        assert str(store.folder) not in result.collected["folder"]
        assert result.collected["command"] == ["--config", "trainer:\n  max_epochs: 3\n", "--model.drop_prob", "0.5"]
    assert execute(runs, store, do, InProcessExecutor(), quiet=True) == []  # there is nothing left to do
