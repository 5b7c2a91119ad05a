"""The interface of techniques that clip gradients, for the gradient monitor."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from lightning_reg.core.session import Session

__all__ = ["ClippingSession"]

T = TypeVar("T")


@dataclass(eq=False)
class ClippingSession(Session[T], Generic[T]):
    """One fit of a technique that clips gradients."""

    @property
    def cut_off(self) -> Collection[nn.Parameter]:
        """Parameters whose gradients are clipped entry by entry rather than scaled as a whole."""
        return ()
