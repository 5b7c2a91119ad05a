"""Runs that take no time, for processes to share."""

import os
import time
from pathlib import Path

from lightning_reg.studies.claims import Claims
from lightning_reg.studies.runs import Measured, Run
from lightning_reg.studies.store import Store


def make_runs(count=4):
    return [Run(variant="a", seed=seed, key=f"{seed:016x}") for seed in range(count)]


def open_store(folder, **claims):
    store = Store(folder, "example", Claims(**claims))
    store.open()
    return store


def note(run, folder):
    """Writes down beside the runs' folder who did what."""
    with (Path(folder).parents[1] / "log.txt").open("a") as file:
        file.write(f"{run.seed} {os.getpid()}\n")


def noted(store):
    path = store.folder / "log.txt"
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def do(run, folder):
    note(run, folder)
    time.sleep(0.05)
    return Measured({"test/accuracy": run.seed / 10})


def do_slowly(run, folder):
    note(run, folder)
    time.sleep(1.0)
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
