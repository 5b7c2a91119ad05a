"""Startup time: imports, and the command line up to the first training step.

``python -m benchmarks startup`` starts new processes, alternating between variants. The reference is importing torch,
Lightning and torchvision, as every project that trains on images does.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.tables import Options, Table
from benchmarks.timing import alternate, median_ratio

REPOSITORY = Path(__file__).parent.parent
# Ends the process at the first training step, so that nothing after it is measured.
FIRST_STEP = """
import os
from lightning.pytorch import LightningModule
from lightning_reg.cli import main
from lightning_reg.models.supervised import Supervised
Supervised.training_step = lambda *_: os._exit({reached})
main(["fit", "--config", "configs/digits_mlp.yaml", "--trainer.logger.save_dir", {folder!r}])
"""
REACHED = 7  # exit status of a process that has reached the first step


def tables(options: Options) -> Iterator[Table]:
    """Yields one table."""
    with tempfile.TemporaryDirectory() as folder:
        training = FIRST_STEP.format(folder=folder, reached=REACHED)
        members = {
            "import torch, lightning, torchvision": _python("import torch, lightning.pytorch, torchvision"),
            "train.py fit, to the first step on digits": _python(training, REACHED),
            "import lightning": _python("import lightning.pytorch"),
            "import lightning, lightning_reg": _python("import lightning.pytorch, lightning_reg"),
            "import lightning, lightning_reg.callbacks": _python("import lightning.pytorch, lightning_reg.callbacks"),
        }
        if options.quick:
            members = {name: members[name] for name in list(members)[:2]}
        seconds = alternate(members, rounds=options.rounds(7, 1))
    table = Table("Until training begins", ["process", "s", "× the bare imports"])
    beside = {"train": "import torch, lightning, torchvision", "import lightning,": "import lightning"}
    for name, times in seconds.items():
        base = next((other for start, other in beside.items() if name.startswith(start)), None)
        table.add(name, statistics.median(times), median_ratio(times, seconds[base]) if base else None)
    yield table


def _python(code: str, status: int = 0) -> Callable[[], None]:
    command = [sys.executable, "-c", code]

    def run() -> None:
        done = subprocess.run(command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        if done.returncode != status:
            raise RuntimeError(f"a process ended with {done.returncode}: {done.stderr[-2000:]}")

    return run
