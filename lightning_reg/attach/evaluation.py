"""A copy of a module that is evaluated in its place, and what it reports under names of its own."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_reg.core.copying import deep_copy
from lightning_reg.core.lightning import callbacks_of, log_metrics, validate_apart
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError

__all__ = ["copy_module", "report_validation"]


def copy_module(trainer: Trainer, module: LightningModule, technique: str) -> LightningModule:
    """Returns a copy that shares nothing with the module but the trainer, so that nothing done to it has consequences.

    Args:
        trainer: The module's.
        module: To be copied.
        technique: Named in the message.

    Raises:
        SettingError: If the module holds something that can't be copied.
    """
    ours = (callback for callback in callbacks_of(trainer) if isinstance(callback, Technique))
    shared = [trainer, trainer.strategy, Run.of(trainer), *trainer.optimizers, *ours]
    try:
        copied: LightningModule = deep_copy(module, {id(part): (part, part) for part in shared if part is not None})
    except Exception as error:
        raise SettingError(
            f"module must hold only what can be copied with {technique}, which evaluates a copy of it, but copying "
            f"raises {type(error).__name__}: {error}"
        ) from error
    return copied


def report_validation(trainer: Trainer, module: LightningModule, prefix: str) -> None:
    """Validates once more than the fit does, and logs what the module logs with a prefix before each name.

    Call where validation is about to run. No callback takes notice, so that nobody's patience is counted twice; neither
    do loggers, the global random streams and the loop's counters. The prefixed metrics can be monitored.

    Args:
        trainer: That fits.
        module: A copy of its module, with the weights that are reported on.
        prefix: Without a slash.
    """
    with isolate_rng():
        metrics, logged = validate_apart(trainer, module)
    named: dict[str, Any] = {
        f"{prefix}/{name}": value.clone() if isinstance(value, Tensor) else value for name, value in metrics.items()
    }
    log_metrics(trainer, named, {f"{prefix}/{name}" for name in logged})
