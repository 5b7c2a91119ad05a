"""What Lightning says: messages on the terminal, and metrics to loggers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer

__all__ = ["quiet", "without_loggers"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses Lightning's info messages."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def without_loggers(trainer: Trainer) -> Iterator[None]:
    """Takes the trainer's loggers away, so that an evaluation beside training isn't logged as one of its own."""
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers
