"""Learning rates that a technique sets by itself."""

from typing import Any

from torch import Tensor

__all__ = ["set_rate"]


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Sets a parameter group's learning rate, in place where it is a tensor, which compiled steps read."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
