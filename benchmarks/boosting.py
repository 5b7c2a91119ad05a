"""The default MLP for tables compared with gradient boosting, on the user's tables.

``python -m benchmarks.boosting FOLDER`` reads every ``NAME.csv`` or ``NAME.csv.gz`` in a folder, predicts its column
``class``, and prints the mean balanced accuracy over repeated splits: of the unchanged ``configs/tabular_mlp.yaml``,
and of scikit-learn's ``HistGradientBoostingClassifier`` with its defaults, on the same training rows with the same
encoding.
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_reg.cli import main as command_line
from lightning_reg.data import TabularData
from lightning_reg.shipped import find_config

__all__ = ["boosted", "trained"]


def trained(path: Path, repeat: int, further: list[str]) -> float:
    """Returns the test balanced accuracy of the MLP configuration.

    Args:
        path: File of the table.
        repeat: Index of the split.
        further: Additional command-line options.
    """
    options: dict[str, Any] = {
        "config": find_config("config", "tabular_mlp").resolve(),
        "data.dataset": "null",
        "data.path": path,
        "data.target": "class",
        "data.repeat": repeat,
        "trainer.enable_progress_bar": "false",
    }
    with tempfile.TemporaryDirectory() as folder:
        options["trainer.logger.save_dir"] = folder
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        for command in (["fit", *words, *further], ["test", *words, *further, "--ckpt_path", "best"]):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
                status = command_line(command)
            if status:
                raise SystemExit(errors.getvalue())
        figures = json.loads(next(Path(folder).rglob("metrics.json")).read_text())
    return float(figures["test"]["balanced_accuracy"])


def boosted(path: Path, repeat: int) -> float:
    """Returns the test balanced accuracy of gradient boosting.

    Args:
        path: File of the table.
        repeat: Index of the split.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import balanced_accuracy_score

    data = TabularData(path=path, target="class", repeat=repeat, val_size=0.15)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    (rows, classes), (test_rows, test_classes) = _rows(data, "train"), _rows(data, "test")
    model = HistGradientBoostingClassifier(random_state=repeat).fit(rows, classes)
    return float(balanced_accuracy_score(test_classes, model.predict(test_rows)))


def _rows(data: TabularData, split: Any) -> tuple[np.ndarray, np.ndarray]:
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.evaluation_dataloader(split) or ()]
    inputs, targets = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    return inputs, targets


def main() -> None:
    """Prints a line per table, and the mean difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="names of tables")
    parser.add_argument("--splits", type=int, default=5)
    options, further = parser.parse_known_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    differences = []
    for path in sorted(options.folder.resolve().glob("*.csv*")):
        name = path.name.split(".")[0]
        if options.only and name not in options.only:
            continue
        ours = statistics.mean(trained(path, repeat, further) for repeat in range(options.splits))
        theirs = statistics.mean(boosted(path, repeat) for repeat in range(options.splits))
        differences.append(ours - theirs)
        print(f"  {name:<16} MLP {ours:6.2%}   boosting {theirs:6.2%}   {100 * (ours - theirs):+.1f}", flush=True)
    if differences:
        print(f"  {'mean':<42} {100 * statistics.mean(differences):+.2f}")


if __name__ == "__main__":
    main()
