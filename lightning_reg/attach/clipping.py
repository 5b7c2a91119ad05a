"""What gradient clipping remembers of one optimizer's gradients, and what it tells of a step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.attach.gradients import same_parameters
from lightning_reg.functional.clip_thresholds import remember_

__all__ = ["ClipMemory", "ClipReport"]


class ClipMemory:
    """Norms so far, their moments, and how often gradients were clipped in this epoch; on the device.

    Args:
        size: How many norms are remembered.
        device: Where the gradients are.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.norms = torch.full((size,), torch.nan, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.moments = torch.zeros(3, device=device)
        self.clipped = torch.zeros((), dtype=torch.int64, device=device)
        self.steps = 0
        self.epoch = 0

    def remember(self, norm: Tensor) -> None:
        """Adds a norm to the history, unless it isn't finite.

        Args:
            norm: A scalar.
        """
        remember_(self.norms, self.count, norm.to(self.norms.dtype))

    def count_step(self, epoch: int, clipped: Tensor) -> None:
        """Counts a step.

        Args:
            epoch: That the step is in; the counts begin anew with each.
            clipped: Whether gradients were clipped.
        """
        if epoch != self.epoch:
            self.epoch, self.steps = epoch, 0
            self.clipped.zero_()
        self.steps += 1
        self.clipped += clipped

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
        for name in ("norms", "count", "moments", "clipped"):
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
