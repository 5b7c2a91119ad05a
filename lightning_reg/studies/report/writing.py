"""Writing a study's report."""

import csv
import os
from pathlib import Path

from lightning_reg.studies.outcome import Outcome
from lightning_reg.studies.report.drawing import write_pictures
from lightning_reg.studies.report.page import page
from lightning_reg.studies.report.pictures import sections

__all__ = ["write_report"]


def write_report(outcome: Outcome, folder: Path) -> Path:
    """Writes ``report.html``, ``results.csv`` and ``plots/*.png``.

    Args:
        outcome: Of a study, complete or not.
        folder: That is made if need be.

    Returns:
        The path of the page.

    Raises:
        SettingError: If there is no matplotlib.
        OSError: If the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(outcome, folder / "results.csv")
    drawn = list(sections(outcome))
    write_pictures([picture for _, _, pictures in drawn for picture in pictures], folder / "plots")
    path = folder / "report.html"
    _replace(path, page(outcome, drawn))
    return path


def _write_table(outcome: Outcome, path: Path) -> None:
    metrics = list(dict.fromkeys(name for each in outcome.results for name in each.metrics))
    order = {variant: index for index, variant in enumerate(outcome.study.variants)}
    beside = path.with_suffix(".tmp")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", *metrics, "seconds"])
        for each in sorted(outcome.results, key=lambda each: (order[each.variant], each.seed)):
            values = [repr(each.metrics[name]) if name in each.metrics else "" for name in metrics]
            writer.writerow([each.variant, each.seed, *values, f"{each.seconds:.3f}"])
    os.replace(beside, path)


def _replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
