"""What gradient clipping remembers of one optimizer's gradients, and what it tells of a step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.attach.gradients import same_parameters
from lightning_reg.functional.clip_thresholds import remember_

__all__ = ["ClipMemory", "ClipReport", "KnownNorms"]


class ClipMemory:
    """Norms so far, their moments, and how often gradients were clipped in this epoch; on the device.

    Args:
        size: How many norms are remembered.
        device: Where the gradients are.
        dtype: Of the norms.
    """

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.norms = torch.full((size,), torch.nan, device=device, dtype=dtype)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.moments = torch.zeros(3, device=device, dtype=dtype)
        self.clipped = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.epoch = 0

    def remember(self, norm: Tensor) -> None:
        """Adds a norm to the history, unless it isn't finite.

        Args:
            norm: A scalar.
        """
        remember_(self.norms, self.count, norm.to(self.norms.dtype))

    def count_step(self, epoch: int, clipped: Tensor, norm: Tensor | None) -> None:
        """Counts a step, unless its norm isn't finite.

        Args:
            epoch: That the step is in; the counts begin anew with each.
            clipped: Whether gradients were clipped.
            norm: Of the gradients, where it is known.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self.steps.zero_()
            self.clipped.zero_()
        finite = torch.ones_like(clipped) if norm is None else norm.isfinite()
        self.steps += finite
        self.clipped += clipped & finite

    def resized(self, size: int) -> "ClipMemory":
        """Returns a memory of another size with the latest norms, as many as fit.

        Args:
            size: How many norms are remembered.
        """
        if size == len(self.norms):
            return self
        place = int(self.count) % len(self.norms)
        latest = self.norms.roll(-place)[-size:]  # the oldest first
        latest = latest[~latest.isnan()]
        self.norms = torch.full((size,), torch.nan, dtype=self.norms.dtype)
        self.norms[: len(latest)] = latest
        self.count.fill_(len(latest))
        return self

    def state_dict(self) -> dict[str, Any]:
        """Returns everything, on the CPU."""
        return {name: value.cpu().clone() if isinstance(value, Tensor) else value for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ClipMemory":
        """Returns what was saved.

        Args:
            state: That :meth:`state_dict` returned.
        """
        memory = cls(len(state["norms"]), torch.device("cpu"))
        vars(memory).update(state)
        return memory

    def to(self, device: torch.device) -> "ClipMemory":
        """Moves it.

        Args:
            device: Where the gradients are.
        """
        for name in ("norms", "count", "moments", "clipped", "steps"):
            setattr(self, name, getattr(self, name).to(device))
        return self


@dataclass
class ClipReport:
    """What clipping did in one step; norms without a gradient scaler's scale.

    Attributes:
        parameters: Whose gradients were looked at.
        threshold: Beyond which gradients were shortened.
        clipped: Whether any was; None where it isn't known without looking at every entry.
        norm: Their norm before clipping, where it was computed.
        clipped_norm: Their norm after clipping, likewise.
    """

    parameters: list[nn.Parameter]
    threshold: float | Tensor
    clipped: Tensor | None = None
    norm: Tensor | None = None
    clipped_norm: Tensor | None = None

    def clipped_norm_of(self, parameters: list[nn.Parameter]) -> Tensor | None:
        """Returns the norm after clipping, if it is that of all these parameters.

        Args:
            parameters: That have a gradient.
        """
        return self.clipped_norm if same_parameters(self.parameters, parameters) else None


@dataclass
class KnownNorms:
    """Norms that somebody else has computed in this step.

    Attributes:
        parameters: Whose gradients.
        norms: (len(parameters),), Euclidean.
        seen: The gradients, and how often they had been changed in place.
    """

    parameters: list[nn.Parameter]
    norms: Tensor
    seen: list[tuple[Tensor | None, int]]

    @classmethod
    def of(cls, parameters: list[nn.Parameter], norms: Tensor) -> "KnownNorms":
        """Returns norms as they are now.

        Args:
            parameters: Each with a gradient.
            norms: Of them.
        """
        return cls(parameters, norms, _state(parameters))

    def still_of(self, parameters: list[nn.Parameter]) -> bool:
        """Whether these are the norms of exactly these parameters' gradients, and nobody has changed any since.

        Args:
            parameters: Each with a gradient.
        """
        if not same_parameters(self.parameters, parameters):
            return False
        now = _state(parameters)
        return all(one is other and then == later for (one, then), (other, later) in zip(self.seen, now, strict=True))


def _state(parameters: list[nn.Parameter]) -> list[tuple[Tensor | None, int]]:
    return [(each.grad, each.grad._version if each.grad is not None else 0) for each in parameters]
