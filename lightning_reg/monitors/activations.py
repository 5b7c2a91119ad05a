"""Hooks that keep sums of what modules return, and statistics of these sums."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_reg.core.hooks import ForwardHook, add_forward_hook, is_transformed, without_records
from lightning_reg.core.selection import select_modules
from lightning_reg.functional.measures.activations import UnitSums, unit_sums
from lightning_reg.functional.measures.histograms import fine_histogram

__all__ = ["ActivationWatch", "Seen", "Sums", "select_watched"]

# Bounds of bounded activations: both, or the one at which a unit counts as saturated.
_BOUNDS: dict[type[nn.Module], tuple[float | None, float | None]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
    nn.ReLU6: (None, 6.0),  # a subclass of Hardtanh; at zero it is silent rather than saturated
}
_FEATURES_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
# Largest number of values of one call in a histogram.
_HISTOGRAM_SAMPLE = 131_072


class Sums(NamedTuple):
    """Sums over all values that a module returned, which can be added up over processes.

    Attributes:
        squares: Sum of squares.
        zeros: Number of exact zeros.
        near_zero: Number of values smaller than the threshold, exact zeros included.
        saturated: Number of values near a bound.
    """

    number: float
    total: float
    squares: float
    zeros: float
    near_zero: float
    saturated: float

    def statistics(self, *, bounded: bool) -> dict[str, float]:
        """Returns mean, standard deviation and shares, by name; not finite where the activations aren't.

        Args:
            bounded: Whether values have a bound at which they can be saturated.
        """
        count = max(self.number, 1.0)
        mean = self.total / count
        variance = self.squares / count - mean * mean
        std = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
        shares = {"zeros": self.zeros / count, "near_zero": self.near_zero / count}
        return {"mean": mean, "std": std, **shares} | ({"saturated": self.saturated / count} if bounded else {})


@dataclass
class Seen:
    """What one module returned since the last measurement, on its device.

    Attributes:
        sums: Values of :class:`Sums`, (6,).
        silent: Whether each unit was zero throughout, (C,).
        histogram: Histogram, (FINE_BINS,); None where histograms aren't kept.
    """

    sums: Tensor
    silent: Tensor
    histogram: Tensor | None


def select_watched(
    module: nn.Module, include: Sequence[str], exclude: Sequence[str], types: Sequence[str | type]
) -> dict[str, nn.Module]:
    """Returns the modules that are watched, by name: with ``"*"`` alone and no types, those without children.

    Args:
        include: Globs over names of modules.
        exclude: Globs over names of modules that are left out.
        types: Classes, or their names.

    Raises:
        SettingError: If a pattern matches nothing, or nothing is left.

    >>> list(select_watched(nn.Sequential(nn.Sequential(nn.ReLU())), ("*",), (), ()))
    ['0.0']
    """
    chosen = select_modules(module, include=include, exclude=exclude, types=types)
    if tuple(include) == ("*",) and not types:
        return {name: submodule for name, submodule in chosen.items() if not any(True for _ in submodule.children())}
    return chosen


class ActivationWatch:
    """Keeps sums of what modules return while ``is_measuring`` is set.

    Hooks only append to lists, and do nothing while they don't measure, so torch.compile takes them into its graph
    without a break.

    Args:
        modules: Modules by name. A shared module's calls count together.
        near_zero: Absolute value below which a value is near zero.
        saturation: Distance from a bound within which a value is saturated, as a share of the activation's range.
        histograms: Whether histograms are kept.
        unit_dim: Dimension of the units; inferred from the module's type and the number of dimensions where None.
        sample: Number of samples of the batch that are measured; all where None.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        *,
        near_zero: float = 1e-3,
        saturation: float = 0.01,
        histograms: bool = False,
        unit_dim: int | None = None,
        sample: int | None = None,
    ) -> None:
        self.modules = modules
        self.is_measuring = False
        self.near_zero = near_zero
        self.histograms = histograms
        self.sample = sample
        self.unit_dim = unit_dim
        self.bounds = {name: _bounds(module, saturation) for name, module in modules.items()}
        self._calls: dict[str, list[tuple[UnitSums, Tensor | None]]] = {name: [] for name in modules}

    def attach(self) -> list[ForwardHook]:
        """Registers the hooks, and returns their handles."""
        return [add_forward_hook(module, self._hook(name, module)) for name, module in self.modules.items()]

    def is_bounded(self, name: str) -> bool:
        """Whether a module's values have a bound."""
        return self.bounds[name] != (None, None)

    def _hook(self, name: str, chosen: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        calls = self._calls[name]
        low, high = self.bounds[name]
        last, first = isinstance(chosen, _FEATURES_LAST), isinstance(chosen, _CHANNELS_FIRST)

        def watch(_module: nn.Module, _: Any, output: Any) -> None:
            if not self.is_measuring:
                return
            activations = _first_tensor(output)
            if activations is None or activations.ndim == 0:
                return
            if not (activations.is_floating_point() or activations.is_complex()):
                return
            if is_transformed(activations):
                return
            activations = without_records(activations.detach())
            if self.sample is not None:
                activations = activations[: self.sample]
            if activations.numel() == 0:
                return
            dim = self.unit_dim
            if dim is None:
                is_map = first or (not last and activations.ndim >= 4)
                dim = 1 if is_map and activations.ndim > 1 else -1
            dim = min(dim, activations.ndim - 1) % activations.ndim
            if activations.is_complex():
                activations = torch.view_as_real(activations.resolve_conj())  # two values of the same unit
            sums = unit_sums(activations, dim, near_zero=self.near_zero, low=low, high=high)
            fine = fine_histogram(_stored(activations), most=_HISTOGRAM_SAMPLE) if self.histograms else None
            calls.append((sums, fine))

        return watch

    def forget(self) -> None:
        """Drops all sums."""
        for calls in self._calls.values():
            calls.clear()

    @torch.no_grad()
    def take(self) -> dict[str, Seen]:
        """Returns what each module that ran has returned since the last call, and resets."""
        seen = {}
        for name, calls in self._calls.items():
            if not calls:
                continue
            # Calls may differ in the number of units: silent units are found in those like the last call.
            per_call = [torch.stack([part.sum() for part in sums]) for sums, _ in calls]
            alike = [sums for sums, _ in calls if sums.zeros.shape == calls[-1][0].zeros.shape]
            values = torch.stack([call.number / len(call.zeros) for call in alike]).sum()
            silent = torch.stack([call.zeros for call in alike]).sum(0) == values
            fine = [call for _, call in calls if call is not None]
            seen[name] = Seen(torch.stack(per_call).sum(0), silent, torch.stack(fine).sum(0) if fine else None)
        self.forget()
        return seen


def _bounds(module: nn.Module, saturation: float) -> tuple[float | None, float | None]:
    """Returns the thresholds, below and above, beyond which values are saturated; None where there is no bound."""
    low: float | None
    high: float | None
    if type(module) is nn.Hardtanh:
        low, high = float(module.min_val), float(module.max_val)
    else:
        low, high = next((bounds for kind, bounds in _BOUNDS.items() if isinstance(module, kind)), (None, None))
    margin = saturation * ((0.0 if high is None else high) - (0.0 if low is None else low))
    return None if low is None else low + margin, None if high is None else high - margin


def _first_tensor(output: Any) -> Tensor | None:
    """Returns the tensor that a module's output is, or begins with; None where there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, PackedSequence):
        return output.data
    if isinstance(output, dict):
        output = list(output.values())
    return _first_tensor(output[0]) if isinstance(output, (tuple, list)) and output else None


def _stored(activations: Tensor) -> Tensor:
    """Returns maps in the channels-last format as they lie in memory, so that they needn't be copied."""
    if activations.ndim > 2 and not activations.is_contiguous():
        return activations.movedim(1, -1)
    return activations
