"""Layout of the charts on TensorBoard's page of custom scalars."""

from collections.abc import Sequence

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor

from lightning_reg.core.facts import SCHEDULE_CHART, Chart
from lightning_reg.core.lightning import twins

__all__ = ["charts_for"]

Charts = dict[str, dict[str, list[str]]]

# The order of the page; other categories follow. Techniques declare their own charts.
_CATEGORIES = ("Generalization", "Training", "Penalties", "Gradients", "Activations", "Weights", "Schedules")
_ALWAYS = (
    Chart("Training", "loss", r"(train|val|valid)[/_]loss(_epoch)?$"),
    Chart("Training", "accuracy", r"(train|val|valid)[/_]acc(uracy)?(_epoch)?$"),
)


def charts_for(callbacks: Sequence[Callback]) -> Charts:
    """Returns the charts that will have curves: regular expressions over tags, by category and title.

    Args:
        callbacks: All callbacks of the trainer.

    >>> list(charts_for([]))
    ['Training']
    """
    charts = [*_ALWAYS, *(chart for callback in callbacks for chart in _charts_of(callback))]
    layout: Charts = {}
    for category in dict.fromkeys([*_CATEGORIES, *(chart.category for chart in charts)]):
        for chart in charts:
            if chart.category == category:
                layout.setdefault(category, {})[chart.title] = [chart.tags]
    return layout


def _charts_of(callback: Callback) -> list[Chart]:
    declared: Sequence[Chart] = getattr(callback, "charts", ())
    shown = [chart for chart in declared if not chart.needs or getattr(callback, chart.needs, None)]
    changes = getattr(callback, "schedule", None) is not None or isinstance(callback, twins(LearningRateMonitor))
    return [*shown, *([SCHEDULE_CHART] if changes else [])]
