"""Runs on the machines of a cluster, which share nothing with the driver and may be lost."""

from contextlib import ExitStack
from dataclasses import replace

import pytest

from lightning_reg.studies.execution import execute
from lightning_reg.studies.executor import RayExecutor
from tests.studies.helpers import Here, do, do_elsewhere, make_runs, open_store
from tests.studies.processes import is_alive, wait_for

pytest.importorskip("ray", reason="Ray isn't installed: pip install 'lightning-reg[cluster]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    with ExitStack() as stack:
        made = Cluster()
        stack.callback(made.shutdown)
        for _ in range(2):
            made.add_node(num_cpus=1, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20)
        yield made


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
    assert execute(runs, store, do, Here(), quiet=True) == []  # there is nothing left to do
