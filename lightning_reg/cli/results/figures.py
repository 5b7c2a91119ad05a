"""The final metrics of a run as a machine-readable file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer

from lightning_reg.files import write_atomically

__all__ = ["write_figures"]


def write_figures(trainer: Trainer, log_dir: str | None, results: Mapping[str, Mapping[str, float]]) -> None:
    """Writes metrics to ``metrics.json`` in the run's folder, keeping the file's metrics of other splits.

    A value that isn't finite is written as null. Nothing is written for a run without a logger and without checkpoints.

    Args:
        trainer: The run's trainer, whose checkpoint callback determines the folder if there is no logger.
        log_dir: Folder of the logger, on which all processes agree.
        results: Metrics by split (train, validation, test), then by name.
    """
    checkpoints = getattr(trainer.checkpoint_callback, "dirpath", None)
    folder = log_dir or (Path(checkpoints).parent if checkpoints else None)
    if not results or folder is None or not Path(folder).is_dir():
        return
    path = Path(folder) / "metrics.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for split, metrics in results.items():
        known[split] = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    write_atomically(path, json.dumps(known, indent=1) + "\n")
