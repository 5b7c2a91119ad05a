"""Paths as users give them."""

import os
from pathlib import Path

from lightning_reg.settings import SettingError

__all__ = ["as_path"]


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder on this machine.

    Args:
        name: Name of the argument, as the user writes it.

    Raises:
        SettingError: If the value is the address of something elsewhere, or no path.

    >>> as_path("path", "s3://bucket/table.csv")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: path must be on this machine, but is 's3://bucket/table.csv'; download it first
    """
    if not isinstance(value, (str, os.PathLike)):
        raise SettingError(f"{name} must be a path, but is {value!r}")
    if isinstance(value, str) and "://" in value:
        raise SettingError(f"{name} must be on this machine, but is {value!r}; download it first")
    return Path(value)
