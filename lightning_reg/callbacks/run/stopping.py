"""The decision to stop a fit, made from metrics alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Self

__all__ = ["Decision", "Progress", "decide"]

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Progress:
    """Progress of a further metric.

    Attributes:
        best: Best finite value so far; None where there was none.
    """

    best: Tensor | None = None
    waits: int = 0

    def after(self, value: Tensor, mode: Mode) -> Self:
        """Returns the progress after another check."""
        is_better = torch.lt if mode == "min" else torch.gt
        if value.isfinite() and (self.best is None or is_better(value, self.best)):
            return replace(self, best=value, waits=0)
        return replace(self, waits=self.waits + 1)

    def has_stalled(self, patience: int) -> bool:
        """Whether it hasn't improved for ``patience`` checks."""
        return self.best is not None and self.waits >= max(patience, 1)


@dataclass(frozen=True)
class Decision:
    """The outcome of a check.

    Attributes:
        reason: Reason in one sentence; None where there is nothing to report.
    """

    stops: bool
    reason: str | None


def decide(
    monitor: str,
    alone: Decision,
    waits: int,
    others: Mapping[str, Progress],
    *,
    patience: int,
    stalled: Literal["all", "any"],
) -> Decision:
    """Returns the decision of the monitor and the further metrics together.

    Args:
        monitor: Name of the first metric.
        alone: The decision of the monitor's patience alone.
        waits: The monitor's checks without improvement.
        others: The further metrics, by name, after this check.
        patience: Checks without improvement after which a metric has stalled.
        stalled: Whether training stops when all have stalled or when any has.

    >>> decide("val_loss", Decision(True, None), 3, {"val_acc": Progress()}, patience=3, stalled="all").stops
    False
    """
    still = [name for name, progress in others.items() if progress.has_stalled(patience)]
    if stalled == "all":
        if not alone.stops:
            return alone
        if len(still) < len(others):
            return Decision(False, None)
        fewest = min(waits, *(others[name].waits for name in still)) if still else waits
        names = ", ".join([monitor, *still])
        return Decision(
            True, f"Monitored metrics {names} did not improve in the last {fewest} records. Signaling Trainer to stop."
        )
    if alone.stops or not still:
        return alone
    name, progress = still[0], others[still[0]]
    return Decision(
        True,
        f"Monitored metric {name} did not improve in the last {progress.waits} records. Best score: "
        f"{progress.best:.3f}. Signaling Trainer to stop.",
    )
