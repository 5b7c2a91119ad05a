"""Distributions of weights, gradients and updates."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.core.facts import Chart, Place
from lightning_reg.core.gradients import whole
from lightning_reg.core.lightning import ends_a_step, step_number
from lightning_reg.core.scalars import log_scalars, withdraw_scalars
from lightning_reg.core.selection import as_patterns, plain_name, select_parameters
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.core.tensorboard import Histogram, has_tensorboard, log_histograms
from lightning_reg.functional.measures.histograms import linear_histogram
from lightning_reg.functional.measures.statistics import Summary, combined, summarized
from lightning_reg.functional.spectrum import stable_rank
from lightning_reg.optim import owned_parameters
from lightning_reg.settings import check_count

__all__ = ["WeightDistribution"]

_NUMBERS = len(Summary._fields)


class WeightDistribution(Technique):
    """Shows how the weights of each parameter are distributed, and on request their gradients and updates.

    What it does: at the end of every so many epochs or steps, mean, standard deviation, extremes, norm, share of exact
    zeros and a histogram of every chosen parameter, computed on its device and brought to the host in one transfer. A
    parameter that holds an infinity or a NaN, or numbers beyond float32's range, is named rather than shown. Complex
    parameters are shown as one distribution of their real and imaginary parts, without a stable rank.

    When to use: to see what a penalty does to weights (zeros, narrower histograms), which layers don't learn (updates)
    and which lose directions (``stable_rank``).

    Cost: at the steps that it measures two reads of each parameter; ``updates`` copies the weights for the duration of
    such a step, ``stable_rank`` reads each matrix forty times. At other steps nothing. No state.

    Args:
        include: Globs over names of parameters.
        exclude: Globs over names of parameters that are left out.
        every_n_steps: Steps between two measurements, at least 1; where None, epochs count.
        every_n_epochs: Epochs between two measurements, at least 1; taken at an epoch's last step.
        histogram_bins: Bins of equal width between the smallest and the largest value, at least 0; no histograms at 0.
        gradients: Whether the gradients with which the optimizer stepped are shown.
        updates: Whether the change of the weights in the step is shown.
        stable_rank: Whether the stable rank of each matrix is shown.
        by_type: Whether the parameters of all layers of one type are shown together, too.
        max_parameters: Largest number of parameters, at least 1; the largest ones are shown.

    Logs:
        ``weight/<name>/mean``, ``std``, ``min``, ``max``, ``norm``, ``zeros``, ``stable_rank``, and the histogram
        ``weight/<name>``; ``gradient/<name>/...`` and ``update/<name>/...`` likewise; ``weight_by_type/<type>/...``.

    Interacts with: sharded parameters, which are gathered for it.

    Raises:
        SettingError: If a setting is out of its range, or a glob matches nothing.

    Reference:
        Stable rank: Mark Rudelson, Roman Vershynin: Sampling from large matrices, Journal of the ACM 54, 2007.

    >>> WeightDistribution(include=("*.weight",), stable_rank=True).histogram_bins
    64
    """

    place = Place.RUN
    charts = (
        Chart("Weights", "norm", r"weight/.*/norm$"),
        Chart("Weights", "exact zeros", r"weight/.*/zeros$"),
    )
    only_watches = True  # the audit leaves out what changes nothing

    def __init__(
        self,
        *,
        include: str | Sequence[str] = ("*",),
        exclude: str | Sequence[str] = (),
        every_n_steps: int | None = None,
        every_n_epochs: int = 1,
        histogram_bins: int = 64,
        gradients: bool = False,
        updates: bool = False,
        stable_rank: bool = False,
        by_type: bool = False,
        max_parameters: int = 256,
    ) -> None:
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        check_count("every_n_epochs", every_n_epochs)
        check_count("histogram_bins", histogram_bins, low=0, high=10**4)
        check_count("max_parameters", max_parameters)
        super().__init__()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.histogram_bins = histogram_bins
        self.gradients = gradients
        self.updates = updates
        self.stable_rank = stable_rank
        self.by_type = by_type
        self.max_parameters = max_parameters

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return WeightSession(self, run)


@dataclass(eq=False)
class WeightSession(Session[WeightDistribution]):
    """One fit, with its copies and layer types by name of the parameter."""

    types: dict[str, str] = field(init=False)  # of the layers that hold the parameters
    suffix: str = field(init=False)
    has_said: bool = False  # how many parameters are left out
    before: dict[str, Tensor] = field(default_factory=dict)  # copies from the start of a measured step
    warned: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.suffix = self.technique.suffix(self.run.trainer)
        self.types = {
            plain_name(owned_parameter.name): type(owned_parameter.owners[0][1]).__name__
            for owned_parameter in owned_parameters(self.run.module)
        }
        self.parameters()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters that are shown, looked up anew because a layer may have been replaced."""
        technique = self.technique
        chosen = select_parameters(
            self.run.module, include=technique.include, exclude=technique.exclude, exclude_norm_and_bias=False
        )
        chosen = {
            name: parameter
            for name, parameter in chosen.items()
            if parameter.is_floating_point() or parameter.is_complex()
        }
        largest = set(sorted(chosen, key=lambda name: -chosen[name].numel())[: technique.max_parameters])
        if len(chosen) > len(largest) and not self.has_said:
            self.has_said = True
            rank_zero_info(
                f"WeightDistribution shows the {len(largest)} largest parameters, without {len(chosen) - len(largest)} "
                "others"
            )
        return {name: parameter for name, parameter in chosen.items() if name in largest}

    @override
    def ends(self, exception: BaseException | None) -> None:
        withdraw_scalars(self.run.trainer, self.tags)

    def _is_measured(self) -> bool:
        technique, trainer = self.technique, self.run.trainer
        if technique.every_n_steps is not None:
            return step_number(trainer) % technique.every_n_steps == 0
        return trainer.is_last_batch and (trainer.current_epoch + 1) % technique.every_n_epochs == 0

    @override
    def batch_starts(self, batch_idx: int) -> None:
        if self.technique.updates and not self.before and self._is_measured():
            self.before = {name: whole(parameter).clone() for name, parameter in self.parameters().items()}

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        if self._is_measured() and ends_a_step(self.run.trainer):
            self.log(self.parameters())
            self.before = {}

    def _tensors(self, parameters: dict[str, nn.Parameter]) -> Iterator[tuple[str, str, Tensor]]:
        """Yields kind, name and tensor of all that is shown."""
        for name, parameter in parameters.items():
            weight = whole(parameter)
            yield "weight", name, _real(weight)
            if self.technique.gradients and parameter.grad is not None:
                gradient = whole(parameter.grad)
                yield "gradient", name, _real(gradient.to_dense() if gradient.is_sparse else gradient)
            if name in self.before:
                yield "update", name, _real(weight - self.before[name])

    def log(self, parameters: dict[str, nn.Parameter]) -> None:
        """Measures and logs parameters by name."""
        trainer = self.run.trainer
        bins = self.technique.histogram_bins if has_tensorboard(trainer) else 0
        tags, packed = [], []
        for kind, name, tensor in self._tensors(parameters):
            tags.append((kind, name))
            packed.append(self._measured(kind, tensor, bins))
        found = torch.stack([values.to(packed[0].device) for values in packed]).cpu()  # one transfer for everything
        values: dict[str, float] = {}
        histograms: dict[str, Histogram] = {}
        for (kind, name), numbers in zip(tags, found, strict=True):
            tag, summary = f"{kind}{self.suffix}/{name}", Summary(*numbers[:_NUMBERS].tolist())
            if not math.isfinite(summary.smallest) or not math.isfinite(summary.largest):
                self._warn_not_finite(kind, name, parameters[name].dtype)
                continue
            statistics = summary.statistics()
            if self.technique.stable_rank and kind == "weight" and _has_rank(parameters[name]):
                statistics["stable_rank"] = float(numbers[_NUMBERS])
            values |= {f"{tag}/{what}": value for what, value in statistics.items()}
            if bins:
                histograms[tag] = _histogram(summary, numbers[_NUMBERS + 1 :])
        if self.technique.by_type:
            values |= self._grouped(tags, found)
        # A square may be out of float32's range where its root isn't.
        values = {tag: value for tag, value in values.items() if math.isfinite(value)}
        self.tags |= values.keys()
        log_scalars(trainer, values)
        log_histograms(trainer, histograms, step_number(trainer) - 1)

    def _measured(self, kind: str, tensor: Tensor, bins: int) -> Tensor:
        """Returns summary, stable rank and counts in a row, on the device."""
        summary = summarized(tensor)
        rank = summary.new_zeros(1)
        if self.technique.stable_rank and kind == "weight" and tensor.ndim > 1:
            rank = stable_rank(tensor).to(summary).view(1)
        if not bins:
            return torch.cat([summary, rank])
        counts = linear_histogram(tensor, summary[-2], summary[-1], bins)
        return torch.cat([summary, rank, counts.to(summary.dtype)])

    def _grouped(self, tags: list[tuple[str, str]], found: Tensor) -> dict[str, float]:
        groups: dict[str, list[Tensor]] = {}
        for (kind, name), numbers in zip(tags, found, strict=True):
            if numbers[:_NUMBERS].isfinite().all():
                tag = f"{kind}_by_type{self.suffix}/{self.types.get(name, 'other')}"
                groups.setdefault(tag, []).append(numbers[:_NUMBERS])
        return {
            f"{tag}/{what}": value
            for tag, parts in groups.items()
            for what, value in Summary(*combined(torch.stack(parts)).tolist()).statistics().items()
        }

    def _warn_not_finite(self, kind: str, name: str, dtype: torch.dtype) -> None:
        if f"{kind} {name}" not in self.warned:
            self.warned.add(f"{kind} {name}")
            is_double = dtype in (torch.float64, torch.complex128)
            measured = " in float32, in which it is measured" if is_double else ""
            rank_zero_warn(f"The {kind} of {name} isn't finite{measured}")


def _real(tensor: Tensor) -> Tensor:
    # A gradient that autograd has conjugated lazily has no view.
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def _has_rank(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and not parameter.is_complex()


def _histogram(summary: Summary, counts: Tensor) -> Histogram:
    # Where all values are equal, their bin needs a width all the same.
    low, high = summary.smallest, summary.largest
    if low == high:
        high += max(1.0, abs(high)) / 1000
    edges = torch.linspace(low, high, len(counts) + 1, dtype=torch.float64)
    return Histogram(counts, edges, summary.mean * summary.number, summary.statistics()["norm"] ** 2)
