"""The final figures of a run as a file, for programs that read them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer

from lightning_reg.files import write_atomically

__all__ = ["write_figures"]


def write_figures(trainer: Trainer, log_dir: str | None, results: Mapping[str, Mapping[str, float]]) -> None:
    """Writes metrics to ``metrics.json`` in the run's folder, beside those of other splits that are there already.

    A value that isn't a finite number is null.

    Args:
        trainer: Says where checkpoints are; a run without a logger and without checkpoints leaves nothing.
        log_dir: The logger's folder, on which all processes have agreed.
        results: By split (train, validation, test), then by the metric's name.
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
