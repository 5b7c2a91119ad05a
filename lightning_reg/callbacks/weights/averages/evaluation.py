"""A second validation, reported under names of its own beside the fit's."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_reg.core.lightning import log_metrics, validate_apart

__all__ = ["report_validation"]


def report_validation(trainer: Trainer, module: LightningModule, prefix: str) -> None:
    """Runs an additional validation, and logs what the module logs with a prefix before each name.

    Call it just before the fit's validation. No callback is called, so that no patience is counted twice; loggers, the
    global random streams and the loop's counters stay as they are. The prefixed metrics can be monitored.

    Args:
        module: The trainer's module or a copy of it, with the weights to report on.
    """
    trainer.fit_loop.epoch_loop.val_loop.setup_data()  # a reload's random numbers are the fit's own
    with isolate_rng():
        metrics, logged = validate_apart(trainer, module)
    named: dict[str, Any] = {
        f"{prefix}/{name}": value.clone() if isinstance(value, Tensor) else value for name, value in metrics.items()
    }
    log_metrics(trainer, named, {f"{prefix}/{name}" for name in logged})
