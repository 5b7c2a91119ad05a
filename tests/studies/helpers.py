"""Runs that take no time, for processes to share."""

import os
import threading
from pathlib import Path

from lightning_reg.studies.runs import Measured, Run
from lightning_reg.studies.store import Store, result_text
from tests.studies.processes import wait_for


def make_runs(count=4):
    return [Run(variant="a", seed=seed, key=f"{seed:016x}") for seed in range(count)]


def open_store(folder):
    """Returns the store of a folder that is a study's already."""
    store = Store(folder, "example")
    with store.locked():
        pass
    return store


def keep(store, run, measured, seconds=1.0):
    store.prepare(run)
    store.write_result(run, result_text(run, measured, seconds))


def note(run, folder):
    """Writes down beside the runs' folder who did what."""
    with (Path(folder).parents[1] / "log.txt").open("a") as file:
        file.write(f"{run.seed} {os.getpid()}\n")


def noted(store):
    path = store.folder / "log.txt"
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def do(run, folder):
    note(run, folder)
    return Measured({"test/accuracy": run.seed / 10})


def do_the_first(run, folder):
    """Does seed 0, and never ends with another."""
    note(run, folder)
    (folder / "checkpoint").touch()
    if run.seed > 0:
        wait_for(lambda: False, seconds=600)
    (folder / "checkpoint").unlink()
    return Measured({"test/accuracy": run.seed / 10})


def do_in_pairs(run, folder):
    """Ends when another process is at a run, too: of the pair 0 and 1, then of 2 and 3."""
    note(run, folder)
    other = run.seed ^ 1
    wait_for(lambda: f"{other} " in (folder.parents[1] / "log.txt").read_text())
    return Measured({"test/accuracy": run.seed / 10})


def fail_once(run, folder):
    """Fails for seed 1 at the first attempt."""
    note(run, folder)
    attempts = (folder.parents[1] / "log.txt").read_text().splitlines()
    if run.seed == 1 and sum(line.startswith("1 ") for line in attempts) == 1:
        raise ValueError("no\nluck")
    return Measured({"test/accuracy": 1.0})


def die_at_two(run, folder):
    """Ends the process of seed 2 as the kernel would that runs out of memory."""
    note(run, folder)
    if run.seed == 2:
        os.kill(os.getpid(), 9)
    return Measured({"test/accuracy": 1.0})


def collect_a_lock(run, folder):
    """Returns what can't be written down, nor handed from process to process."""
    return Measured({"test/accuracy": 1.0}, collected={"lock": threading.Lock()})


def do_elsewhere(run, folder):
    """Notes on which node of a cluster it is, and ends when a file says so."""
    import ray

    place = Path(str(run.arguments["signals"]))
    node = ray.get_runtime_context().get_node_id()
    (place / f"{run.seed} {node} {os.getpid()}").touch()
    wait_for((place / "let go").exists)
    return Measured({"test/accuracy": run.seed / 10}, collected={"folder": str(folder), "command": list(run.command)})
