"""A pass over the validation data that is reported under other names than the module's."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_reg.attach.technique import callbacks_of
from lightning_reg.core.wrapping import around

__all__ = ["report_validation"]


def report_validation(trainer: Trainer, prefix: str) -> None:
    """Validates once more than the fit does, and logs what the module logs with a prefix before each name.

    Call where validation is about to run. No callback takes notice, so that nobody's patience is counted twice; neither
    do the global random stream and the loop's counters. The prefixed metrics can be monitored.

    Args:
        trainer: That fits, with the weights in its module that are reported on.
        prefix: Without a slash.
    """
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    callbacks, progress = callbacks_of(trainer), loop.batch_progress.state_dict()
    names = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
    before = {name: getattr(connector, name) for name in names}
    trainer.callbacks = []  # type: ignore[attr-defined]  # set outside the class
    muted = around(connector, "log_metrics", lambda *_, **__: None)
    try:
        for name in names:
            setattr(connector, name, type(before[name])())
        with isolate_rng():
            type(loop).run(loop)  # the loop's own method, without what stands around it
        reported = {name: connector._callback_metrics[name] for name in connector._callback_metrics}
        logged = set(connector._logged_metrics)
    finally:
        muted.remove()
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        for name, metrics in before.items():
            setattr(connector, name, metrics)
        loop.batch_progress.load_state_dict(progress)
    named: dict[str, Any] = {f"{prefix}/{name}": value for name, value in reported.items()}
    connector._callback_metrics.update(
        {name: value.clone() if isinstance(value, Tensor) else value for name, value in named.items()}
    )
    connector.log_metrics({f"{prefix}/{name}": reported[name] for name in reported if name in logged})
