"""Writer of a study's report."""

import csv
import io
from pathlib import Path

from lightning_reg.files import write_atomically
from lightning_reg.studies.outcome import Outcome
from lightning_reg.studies.report.charts import sections
from lightning_reg.studies.report.figures import check_can_draw
from lightning_reg.studies.report.page import page

__all__ = ["write_report"]


def write_report(outcome: Outcome, folder: Path) -> Path:
    """Writes ``report.html``, ``results.csv`` and ``plots/*.png``.

    Args:
        outcome: Outcome of a study, possibly incomplete.
        folder: Output folder, which is created if needed.

    Returns:
        The path of the page.

    Raises:
        SettingError: If matplotlib isn't installed.
        OSError: If the folder can't be written.
    """
    check_can_draw()
    plots = folder / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.csv", _runs(outcome))
    drawn = list(sections(outcome))
    charts = {f"{chart.name}.png": chart.png for section in drawn for chart in section.charts}
    for old in plots.glob("*.png"):
        if old.name not in charts:
            old.unlink(missing_ok=True)
    for name, png in charts.items():
        (plots / name).write_bytes(png)
    path = folder / "report.html"
    write_atomically(path, page(outcome, drawn))
    return path


def _runs(outcome: Outcome) -> str:
    """Returns the content of the CSV file, one line per run."""
    metrics = list(dict.fromkeys(name for result in outcome.results for name in result.metrics))
    order = {variant: index for index, variant in enumerate(outcome.study.variants)}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["variant", "seed", *metrics, "seconds"])
    for result in sorted(outcome.results, key=lambda result: (order[result.variant], result.seed)):
        values = [repr(result.metrics[name]) if name in result.metrics else "" for name in metrics]
        writer.writerow([result.variant, result.seed, *values, f"{result.seconds:.3f}"])
    return text.getvalue()
