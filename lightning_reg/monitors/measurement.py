"""Measurement of one optimizer step: gradients before and after clipping, and updates of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_reg.core.gradients import gradient_norms, whole
from lightning_reg.functional.norms import total_norm

__all__ = ["Measurement", "NotFinite", "OptimizerRecord", "SeenClip", "StepCounts", "is_shorter"]


@dataclass
class SeenClip:
    """A clipping that was observed.

    Attributes:
        threshold: Threshold beyond which gradients are shortened; None where it isn't known.
        largest: Largest absolute entry before clipping, where single entries rather than a norm are clipped.
    """

    threshold: float | Tensor | None = None
    largest: Tensor | None = None


@dataclass
class Measurement:
    """Norms of one step, on the device, without a gradient scaler's scale.

    Attributes:
        parameters: Parameters that have a gradient, at least one.
        norms: Norms of the gradients before clipping, (len(parameters),).
        clip: The clipping that was observed in the step.
        clipped: Whether anything was clipped.
        clipped_before: Whether the module clipped between the backward pass and the step; None where it can't.
        threshold_before: Threshold of that clipping; None where it isn't known.
        clipped_norm: Total norm with which the optimizer stepped; None where it isn't known yet.
        weights: Copies of the weights from before the step, where updates are measured.
        updates: Norms of the updates, (len(parameters),).
        lengths: Norms of the weights before the step, (len(parameters),).
    """

    parameters: list[nn.Parameter]
    norms: Tensor
    clip: SeenClip = field(default_factory=SeenClip)
    clipped: Tensor | None = None
    clipped_before: Tensor | None = None
    threshold_before: float | Tensor | None = None
    clipped_norm: Tensor | None = None
    weights: list[Tensor] | None = None
    updates: Tensor | None = None
    lengths: Tensor | None = None

    @property
    def norm(self) -> Tensor:
        """Total norm before clipping."""
        return total_norm(self.norms)

    def copy_weights(self) -> None:
        """Copies the weights; call before the step, if updates are measured."""
        self.weights = [parameter.detach().clone() for parameter in self.parameters]

    def finish(self) -> None:
        """Completes the measurement; call after the step."""
        if self.clipped_norm is None:
            # A fused optimizer has unscaled the gradients in its step.
            self.clipped_norm = total_norm(gradient_norms(self.parameters))
        if self.clipped is None:
            self.clipped = self._was_clipped(self.clipped_norm)
            if self.clipped_before is not None:
                self.clipped = self.clipped | self.clipped_before
        if self.weights is not None:
            self.lengths = _norms(self.weights)
            for before, after in zip(self.weights, self.parameters, strict=True):
                before.sub_(after.detach())  # in the copies' place: the step that the weights made, turned round
            self.updates = _norms(self.weights)
            self.weights = None

    def _was_clipped(self, clipped_norm: Tensor) -> Tensor:
        if self.clip.threshold is None:
            return is_shorter(clipped_norm, self.norm)
        return (self.norm if self.clip.largest is None else self.clip.largest) > self.clip.threshold

    def values(self, layers: dict[str, list[nn.Parameter]]) -> dict[str, Tensor]:
        """Returns the values to log, by tag.

        Args:
            layers: Parameters of the layers that are shown one by one, by name.
        """
        values: dict[str, Tensor | float | None] = {
            "grad/norm": self.norm,
            "grad/norm_clipped": self.clipped_norm,
            "grad/clip_threshold": self.threshold_before if self.clip.threshold is None else self.clip.threshold,
        }
        for name, parameters in layers.items():
            values[f"grad/norm/{name}"] = self._norm_of(self.norms, parameters)
        if self.updates is not None and self.lengths is not None:
            values["update/ratio"] = total_norm(self.updates) / total_norm(self.lengths)
            for name, parameters in layers.items():
                update, length = (self._norm_of(parts, parameters) for parts in (self.updates, self.lengths))
                values[f"update/ratio/{name}"] = None if update is None or length is None else update / length
        return {tag: torch.as_tensor(value) for tag, value in values.items() if value is not None}

    def _norm_of(self, parts: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor | None:
        """Returns the norm over some parameters; None where none of them has a gradient."""
        chosen = [
            index for index, parameter in enumerate(self.parameters) if any(parameter is other for other in parameters)
        ]
        return total_norm(torch.stack([parts[index] for index in chosen])) if chosen else None


def is_shorter(norm: Tensor, before: Tensor) -> Tensor:
    """Whether a norm is shorter by more than rounding explains."""
    return norm < before * (1 - 1e-5)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [whole(torch.linalg.vector_norm(tensor if tensor.is_complex() else tensor.float())) for tensor in tensors]
    )


class StepCounts:
    """Counts of one optimizer's steps that were measured, clipped or not finite, kept on the gradients' device."""

    def __init__(self, device: torch.device) -> None:
        self.steps = 0  # all, measured or not
        self.skipped = 0  # those that a gradient scaler didn't let the optimizer make
        self.epoch = 0  # the one in which measured and clipped are counted
        self.measured = torch.zeros((), dtype=torch.int64, device=device)
        self.clipped = torch.zeros((), dtype=torch.int64, device=device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, measurement: Measurement, epoch: int) -> None:
        """Counts a step of an epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.measured.zero_()
            self.clipped.zero_()
        finite = measurement.norm.isfinite()
        self.measured += finite
        self.nonfinite += ~finite
        if measurement.clipped is not None:
            self.clipped += measurement.clipped & finite

    def clip_fraction(self) -> Tensor:
        """Returns the share of this epoch's measured steps that were clipped."""
        return self.clipped / self.measured.clamp(min=1)

    def state_dict(self) -> dict[str, int]:
        """Returns everything as plain numbers."""
        return {name: int(value) for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: dict[str, int], device: torch.device) -> Self:
        """Returns counts from the result of :meth:`state_dict`."""
        counts = cls(device)
        for name, value in state.items():
            setattr(counts, name, value if isinstance(getattr(counts, name), int) else torch.tensor(value).to(device))
        return counts


class NotFinite:
    """Names of parameters whose gradients held an infinity or a NaN, recorded on the device.

    Args:
        known: Names that were found before.
    """

    def __init__(self, known: Sequence[str] = ()) -> None:
        self._known = list(known)
        self._flags: dict[tuple[str, ...], Tensor] = {}

    def note(self, names: Sequence[str], norms: Tensor) -> None:
        """Records a step.

        Args:
            norms: Norms of the gradients, (len(names),).
        """
        flags = ~norms.isfinite()
        before = self._flags.get(tuple(names))
        self._flags[tuple(names)] = flags if before is None else flags | before

    def names(self) -> list[str]:
        """Returns the names, each once."""
        noted = (
            name for names, flags in self._flags.items() for name, bad in zip(names, flags.tolist(), strict=True) if bad
        )
        return list(dict.fromkeys([*self._known, *noted]))


@dataclass
class OptimizerRecord:
    """Record of one optimizer's steps.

    Attributes:
        latest: Latest values that haven't been logged yet, by tag.
        not_finite: Parameters whose gradients weren't finite.
        running: Measurement of the step that is open; None where it isn't measured.
        is_open: Whether a step has begun that the optimizer hasn't made yet.
        first_norm: Norm at the beginning of the step, where the module may have clipped before.
        clip: Clipping by hand, before the step.
        fraction: Share of this epoch's steps that our own clipping has clipped, where it counts them.
    """

    counts: StepCounts
    latest: dict[str, Tensor] = field(default_factory=dict)
    not_finite: NotFinite = field(default_factory=NotFinite)
    running: Measurement | None = None
    is_open: bool = False
    first_norm: Tensor | None = None
    clip: SeenClip = field(default_factory=SeenClip)
    fraction: Tensor | None = None

    def close_batch(self) -> None:
        """Closes the step that was open in a batch."""
        self.running, self.is_open, self.first_norm, self.clip = None, False, None, SeenClip()
