"""Saving hyperparameters so that a checkpoint stays loadable."""

import inspect
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

__all__ = ["save_plain_hyperparameters"]


def save_plain_hyperparameters(module: LightningModule | LightningDataModule, ignore: Sequence[str] = ()) -> None:
    """Saves the plain arguments of the calling ``__init__`` as hyperparameters.

    Functions and classes (an optimizer, a norm given as a callable) are left out: torch refuses to load a checkpoint
    that contains them with ``weights_only=True``, its default, and so every resume would fail. From the command line
    they are still recorded, as text of the configuration.

    Args:
        ignore: Names of arguments that are left out in any case.
    """
    caller = inspect.currentframe()
    frame = caller.f_back if caller else None
    # Data is ignored in advance as well, because Lightning copies whatever it saves. A callable may be plain on the
    # command line, as a class path; further settings are one dict here, and separate arguments there.
    local = frame.f_locals.items() if frame else ()
    others = [name for name, value in local if not (isinstance(value, dict) or callable(value) or _is_plain(value))]
    module.save_hyperparameters(ignore=[*ignore, *others], frame=frame)
    module.remove_ignored_hparams([name for name, value in module.hparams.items() if not _is_plain(value)])


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))
