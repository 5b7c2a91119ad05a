"""What techniques that clip gradients tell the gradient monitor."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from lightning_reg.core.session import Session

__all__ = ["Clip", "ClippingSession"]

T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """Result of clipping in one step; norms are without a gradient scaler's scale.

    Attributes:
        parameters: Parameters whose gradients were considered.
        threshold: Norm, share of the weights' norm, or absolute value of an entry above which gradients are clipped.
        clipped: Whether any gradient was clipped; None if this isn't known without reading every entry.
        norm: Total norm before clipping, if it was computed.
        clipped_norm: Total norm after clipping, if it was computed.
        by_entry: Whether single entries are clipped rather than a norm.
        fraction: Fraction of this epoch's steps that were clipped, if it is counted.
    """

    parameters: list[nn.Parameter]
    threshold: float | Tensor
    clipped: Tensor | None = None
    norm: Tensor | None = None
    clipped_norm: Tensor | None = None
    by_entry: bool = False
    fraction: Tensor | None = None


@dataclass(eq=False)
class ClippingSession(Session[T], Generic[T]):
    """One fit of a technique that clips gradients."""

    @property
    def cut_off(self) -> Collection[nn.Parameter]:
        """Parameters whose gradients are clipped entry by entry rather than scaled as a whole."""
        return ()
