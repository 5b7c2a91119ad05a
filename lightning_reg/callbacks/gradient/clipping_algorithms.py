"""The five clipping algorithms, and their memory of one optimizer's gradients."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from lightning_reg.core.clipping import Clip
from lightning_reg.core.gradients import gradient_norms, gradient_values, local
from lightning_reg.core.selection import Selection
from lightning_reg.core.step import Step
from lightning_reg.functional.gradient.clip_thresholds import percentile_threshold, remember_, zscore_thresholds_
from lightning_reg.functional.gradient.clipping import clip_adaptively_, clip_by_value_, scale_, shrinking_factor
from lightning_reg.functional.norms import total_norm
from lightning_reg.settings import check_count, check_range

__all__ = ["ALGORITHMS", "AdaptiveClipping", "Algorithm", "ClipMemory", "ValueClipping"]


@dataclass
class ClipMemory:
    """Memory of one optimizer's gradients, on their device.

    Attributes:
        norms: Ring buffer of the latest norms, (N,), NaN where there is none yet.
        count: Number of norms that have been recorded.
        moments: Moments of :func:`zscore_thresholds_`, (3,).
        clipped: Number of steps of this epoch in which gradients were clipped.
        steps: Number of steps of this epoch with a finite norm.
        epoch: Epoch in which both are counted.
    """

    norms: Tensor
    count: Tensor
    moments: Tensor
    clipped: Tensor
    steps: Tensor
    epoch: int = 0

    @classmethod
    def empty(cls, size: int, like: Tensor) -> Self:
        """Returns an empty memory of the given number of norms, for gradients like those of a parameter."""
        dtype = torch.promote_types(like.dtype.to_real(), torch.float32)
        nothing = torch.zeros((), dtype=torch.int64, device=like.device)
        norms = torch.full((size,), torch.nan, device=like.device, dtype=dtype)
        moments = torch.zeros(3, device=like.device, dtype=dtype)
        return cls(norms, nothing.clone(), moments, nothing.clone(), nothing.clone())

    @classmethod
    def loaded(cls, state: dict[str, Any], size: int, device: torch.device) -> Self:
        """Returns a saved memory, with as many of the latest norms as the given size holds."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()
        }
        memory = cls(**moved)
        if size != len(memory.norms):
            place = int(memory.count) % len(memory.norms)
            latest = memory.norms.roll(-place)[-size:]  # the oldest first
            latest = latest[~latest.isnan()]
            memory.norms = torch.full((size,), torch.nan, dtype=latest.dtype, device=device)
            memory.norms[: len(latest)] = latest
            memory.count.fill_(len(latest))
        return memory

    def to(self, device: torch.device) -> Self:
        """Returns the memory on the device of the gradients."""
        if self.norms.device == device:
            return self
        return self.loaded(vars(self), len(self.norms), device)

    def count_step(self, epoch: int, clipped: Tensor, norm: Tensor | None) -> None:
        """Counts a step, unless its norm isn't finite; the counts begin anew with each epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.steps.zero_()
            self.clipped.zero_()
        finite = torch.ones_like(clipped) if norm is None else norm.isfinite()
        self.steps += finite
        self.clipped += clipped & finite


@dataclass(frozen=True)
class Algorithm:
    """A clipping algorithm. Its settings are fields; its memory is kept per optimizer."""

    by_unit: ClassVar[bool] = False  # whether it looks at the weights that lead into a unit

    @property
    def remembered(self) -> int:
        """Number of norms that its memory holds."""
        return 1

    def clip_(
        self, step: Step, parameters: list[nn.Parameter], selection: Selection, memory: ClipMemory, factor: float
    ) -> Clip:
        """Clips the gradients of one step in place, with the threshold times a factor."""
        raise NotImplementedError


@dataclass(frozen=True)
class NormClipping(Algorithm):
    """Scales all gradients by one factor to a largest total norm."""

    max_norm: float = 1.0
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        check_range("max_norm", self.max_norm, low=0, low_open=True, infinite=True)
        if self.norm_type != torch.inf:
            check_range("norm_type", self.norm_type, low=1)

    @override
    def clip_(
        self, step: Step, parameters: list[nn.Parameter], selection: Selection, memory: ClipMemory, factor: float
    ) -> Clip:
        longest = self.max_norm * factor
        if longest == torch.inf:  # divided by an infinite norm it would be NaN
            return Clip(parameters, longest, torch.zeros((), dtype=torch.bool, device=parameters[0].device))
        if self.norm_type == 2:
            norm = _norm(step, parameters)
            return _shortened(parameters, longest, norm, shrinking_factor(norm, longest))
        norm = step.unscaled(total_norm(gradient_norms(parameters, self.norm_type), self.norm_type))
        clip = _shortened(parameters, longest, norm, shrinking_factor(norm, longest))
        return replace(clip, clipped_norm=None)  # others measure the Euclidean norm


@dataclass(frozen=True)
class ValueClipping(Algorithm):
    """Clips every entry to a largest absolute value."""

    max_value: float = 0.5

    def __post_init__(self) -> None:
        check_range("max_value", self.max_value, low=0, low_open=True, infinite=True)

    @override
    def clip_(
        self, step: Step, parameters: list[nn.Parameter], selection: Selection, memory: ClipMemory, factor: float
    ) -> Clip:
        bound = self.max_value * factor
        # Under a scaler an infinity has to stay one: the optimizer skips its step by it.
        clip_by_value_(
            [local(gradient_values(parameter)) for parameter in parameters],
            step.scaled(bound),
            keep_nonfinite=step.scale is not None,
        )
        return Clip(parameters, bound, by_entry=True)


@dataclass(frozen=True)
class AdaptiveClipping(Algorithm):
    """Bounds the gradient of every unit by a share of the norm of its weights."""

    by_unit: ClassVar[bool] = True

    clip_factor: float = 0.01
    eps: float = 1e-3
    exclude_head: bool = True

    def __post_init__(self) -> None:
        check_range("clip_factor", self.clip_factor, low=0, low_open=True, infinite=True)
        check_range("eps", self.eps, low=0, low_open=True)

    @override
    def clip_(
        self, step: Step, parameters: list[nn.Parameter], selection: Selection, memory: ClipMemory, factor: float
    ) -> Clip:
        share = self.clip_factor * factor
        gradients = selection.units([gradient_values(parameter) for parameter in parameters], parameters)
        weights = selection.units([_with_gradient(parameter) for parameter in parameters], parameters)
        scale = 1.0 if step.scale is None else step.scale
        return Clip(parameters, share, clip_adaptively_(gradients, weights, share, eps=self.eps, scale=scale))


@dataclass(frozen=True)
class PercentileClipping(Algorithm):
    """Shortens gradients to a percentile of the norms so far."""

    percentile: float = 10.0
    history: int = 1000

    def __post_init__(self) -> None:
        check_range("percentile", self.percentile, low=0, high=100, low_open=True)
        check_count("history", self.history, high=10**6)

    @property
    @override
    def remembered(self) -> int:
        return self.history

    @override
    def clip_(
        self, step: Step, parameters: list[nn.Parameter], selection: Selection, memory: ClipMemory, factor: float
    ) -> Clip:
        norm = _norm(step, parameters)
        remember_(memory.norms, memory.count, norm.to(memory.norms.dtype))
        threshold = percentile_threshold(memory.norms, self.percentile) * factor
        return _shortened_beyond(parameters, threshold, norm, threshold)


@dataclass(frozen=True)
class ZScoreClipping(Algorithm):
    """Shortens gradients whose norm is far above its running mean."""

    z_threshold: float = 2.5
    alpha: float = 0.97
    warmup_steps: int = 25

    def __post_init__(self) -> None:
        check_range("z_threshold", self.z_threshold, low=0, low_open=True, infinite=True)
        check_range("alpha", self.alpha, low=0, high=1, low_open=True, high_open=True)
        check_count("warmup_steps", self.warmup_steps, low=2)

    @override
    def clip_(
        self, step: Step, parameters: list[nn.Parameter], selection: Selection, memory: ClipMemory, factor: float
    ) -> Clip:
        norm = _norm(step, parameters)
        threshold, target = zscore_thresholds_(
            memory.moments,
            norm,
            z_threshold=self.z_threshold * factor,
            alpha=self.alpha,
            warmup_steps=self.warmup_steps,
        )
        return _shortened_beyond(parameters, threshold, norm, target)


ALGORITHMS: dict[str, type[Algorithm]] = {
    "norm": NormClipping,
    "value": ValueClipping,
    "adaptive": AdaptiveClipping,
    "percentile": PercentileClipping,
    "zscore": ZScoreClipping,
}


def _norm(step: Step, parameters: list[nn.Parameter]) -> Tensor:
    return step.unscaled(total_norm(step.norms(parameters)))


def _shortened(parameters: list[nn.Parameter], threshold: float | Tensor, norm: Tensor, factor: Tensor) -> Clip:
    scale_([local(gradient_values(parameter)) for parameter in parameters], factor)
    return Clip(parameters, threshold, factor < 1, norm, norm * factor)


def _shortened_beyond(parameters: list[nn.Parameter], threshold: Tensor, norm: Tensor, target: Tensor) -> Clip:
    # A norm exactly at the threshold isn't changed; torch's clipping shrinks it because of its 1e-6.
    factor = torch.where(norm > threshold, shrinking_factor(norm, target), 1.0)
    return _shortened(parameters, threshold, norm, factor)


def _with_gradient(parameter: nn.Parameter) -> Tensor:
    """Returns the weights that the entries of a gradient belong to; for a sparse one, the stored rows."""
    gradient, weights = parameter.grad, parameter.detach()
    return weights[gradient.indices()[0]] if gradient is not None and gradient.is_sparse else weights
