"""Interpolation between the weights that fine-tuning began with and those that it ended with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.average_session import Averaged, AverageSession
from lightning_reg.callbacks.weights.averages.averaging import Validate, WeightAverage
from lightning_reg.callbacks.weights.averages.registered import tensors_of
from lightning_reg.core.facts import Linear
from lightning_reg.core.gradients import local, to_shard, whole
from lightning_reg.core.lightning import log_metrics, validate_apart
from lightning_reg.core.selection import as_patterns, select_names
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run, Step
from lightning_reg.functional.weights.averaging import interpolate_
from lightning_reg.settings import SettingError, as_sequence, check_choice, check_range

__all__ = ["Interpolated", "WiSEFT"]

Mode = Literal["min", "max"]
Statistics = Literal["recompute", "copy"]


@dataclass(frozen=True)
class Interpolated(Averaged):
    """Result of an interpolation.

    Attributes:
        alpha: Share of the trained weights.
        sweep: Metrics of the module's validation for each share that was tried, by name.
    """

    alpha: float
    sweep: Mapping[float, Mapping[str, float]]


class WiSEFT(WeightAverage):
    """Evaluates with weights on the line from those that fine-tuning began with to the trained ones.

    What it does: keeps the weights θ₀ that a fit begins with, and evaluates with (1 - α) θ₀ + α θ₁ of the trained ones
    θ₁. The fit validates with them, checkpoints hold them as the model's ``state_dict``, and after the fit they are in
    the module. At the end of training ``sweep`` validates other shares; with ``monitor`` the best of them is kept.

    When to use: to fine-tune a large pretrained model, which stays as robust to distribution shift as it was and
    becomes nearly as accurate on the new data as fine-tuning makes it, often more accurate than either. When not: for
    training from scratch, whose first weights are worth nothing; name a new head in ``exclude``.

    Cost: two copies of the weights, in memory, and one of them in checkpoints; nothing in a step. The sweep takes a
    validation for each share, and BatchNorm's statistics are recomputed for each as in
    :class:`StochasticWeightAverage`, which remembers inputs of the epoch.

    Logs:
        ``wise_ft/<alpha>/<name>``: what the module logs in validation, for each share of the sweep, at the end. With
        ``validate="both"`` ``wise_ft/<name>``, measured with the interpolated weights.

    Interacts with: other averages: the first in the list gives the model its weights, the others only report.
    ``BestWeightsEarlyStopping``, which restores the weights that were validated best, after the sweep. ``L2SPPenalty``
    pulls toward the same weights while they are trained.

    Deviates from the paper: statistics of BatchNorm are recomputed; the paper's models have none.

    Args:
        alpha: Share of the trained weights, in [0, 1]; with 1 nothing is changed.
        sweep: Further shares that are validated when training has ended, each in [0, 1]; none where empty.
        monitor: Metric by which the final share is chosen from the sweep; ``alpha`` is kept where None.
        mode: ``"min"`` if a lower metric is better, ``"max"`` if a higher one is.
        exclude: Globs over names of parameters that aren't interpolated but stay as trained.
        buffers: BatchNorm's statistics: ``"recompute"`` for the interpolated weights, or ``"copy"`` from the trained
            ones.
        validate: ``"averaged"``: validation reports on the interpolated weights; ``"both"``: on the trained weights,
            and once more, with a prefix, on the interpolated ones.

    Raises:
        SettingError: If a setting is out of its range, a sweep has nothing to validate with, Lightning averages weights
            too, or the strategy flattens parameters.

    Reference:
        Mitchell Wortsman, Gabriel Ilharco, Jong Wook Kim et al.: Robust fine-tuning of zero-shot models, CVPR 2022,
        arXiv:2109.01903.

    >>> WiSEFT(alpha=0.5, sweep=(0.25, 0.75), monitor="val_loss").sweep
    (0.25, 0.75)
    """

    prefix = "wise_ft"
    usual_ranges = (Linear("alpha", 0.3, 0.9),)

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        sweep: Sequence[float] = (),
        monitor: str | None = None,
        mode: Mode = "min",
        exclude: str | Sequence[str] = (),
        buffers: Statistics = "recompute",
        validate: Validate = "averaged",
    ) -> None:
        check_range("alpha", alpha, low=0, high=1)
        shares = as_sequence("sweep", sweep)
        for share in shares:
            check_range("sweep", share, low=0, high=1)
        if monitor is not None and not shares:
            raise SettingError(f"sweep must have shares to choose from with monitor {monitor!r}, but is empty")
        check_choice("mode", mode, get_args(Mode))
        check_choice("buffers", buffers, get_args(Statistics))
        super().__init__(buffers=buffers, validate=validate)
        self.alpha = alpha
        self.sweep = shares
        self.monitor = monitor
        self.mode: Mode = mode
        self.exclude = as_patterns("exclude", exclude)

    @property
    def swept(self) -> Mapping[float, Mapping[str, float]]:
        """What the module logged in validation for each share of the latest sweep, by name."""
        return self.last_result.sweep if self.last_result else {}

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return InterpolationSession(self, run)


@dataclass(eq=False)
class InterpolationSession(AverageSession):
    """One fine-tuning."""

    technique: WiSEFT
    start: dict[str, Tensor] = kept(default_factory=dict)  # what training began with
    alpha: float = field(init=False)
    sweep: dict[float, dict[str, float]] = field(default_factory=dict, init=False)
    is_stale: bool = field(default=False, init=False)  # whether training has gone on since

    def __post_init__(self) -> None:
        super().__post_init__()
        self.alpha = self.technique.alpha

    @override
    def kept(self) -> dict[str, Any]:
        self._follow()
        return {**super().kept(), "start": {name: _whole(value) for name, value in self.start.items()}}

    @override
    def result(self) -> Interpolated:
        averaged = super().result()
        sweep = MappingProxyType({alpha: MappingProxyType(metrics) for alpha, metrics in self.sweep.items()})
        return Interpolated(averaged.updates, averaged.is_in, averaged.weights, self.alpha, sweep)

    # When it acts: the interpolated weights are computed on demand

    @property
    @override
    def is_averaging(self) -> bool:
        return True

    @property
    @override
    def has_begun(self) -> bool:
        return True  # with the weights that training begins with

    @override
    def is_due_after_step(self) -> bool:
        return False

    @override
    def train_starts(self) -> None:
        super().train_starts()
        if self.technique.sweep and not self.run.trainer.enable_validation:
            raise SettingError("sweep must be left out where the fit has no validation data")
        self._chosen()  # raises if a pattern matches nothing

    @override
    def batch_starts(self, batch_idx: int) -> None:
        super().batch_starts(batch_idx)
        if not self.start:  # not earlier: a module may load pretrained weights in on_train_start
            self.start = {name: tensor.detach().clone() for name, tensor in self._chosen().items()}

    @override
    def after_step(self, step: Step) -> None:
        super().after_step(step)
        self.is_stale = True

    @override
    def train_ends(self) -> None:
        self._follow()
        if self.technique.sweep and self.held.values:
            self._sweep()
        super().train_ends()

    @override
    def _validate(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        self._follow()
        return super()._validate(inner, *args, **kwargs)

    @override
    def recompute_for_checkpoint(self) -> None:
        self._follow()
        super().recompute_for_checkpoint()

    # What it does

    def _chosen(self) -> dict[str, nn.Parameter]:
        """Returns the parameters that are interpolated, by name."""
        tensors = tensors_of(self.run.module)
        chosen = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
        if not self.technique.exclude:
            return chosen
        names = select_names(list(chosen), include=("*",), exclude=self.technique.exclude, kind="parameter")
        return {name: chosen[name] for name in names}

    def _follow(self) -> None:
        """Updates the interpolated weights to the current trained weights."""
        if self.is_stale and not self.held.is_in:
            self.take()
            self.is_stale = False

    @override
    def take(self) -> None:
        super().take()  # which copies what isn't held yet
        averages, tensors = self.averaged
        starts = [self._started(name, tensor) for name, tensor in zip(self.names, tensors, strict=True)]
        if averages:
            interpolate_(averages, list(map(local, starts)), list(map(local, tensors)), self.alpha)

    @override
    def update_(self, averages: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Does nothing: :meth:`take` recomputes the interpolated weights."""

    def _started(self, name: str, tensor: Tensor) -> Tensor:
        start = self.start.get(name)
        if start is None or start.shape != tensor.shape:  # excluded, or another weight by now
            return tensor
        if start.device != tensor.device or isinstance(start, DTensor) != isinstance(tensor, DTensor):
            start = self.start[name] = to_shard(start, tensor)  # of a checkpoint
        return start

    def _sweep(self) -> None:
        technique, trainer = self.technique, self.run.trainer
        for alpha in technique.sweep:
            self.alpha = alpha
            self.take()
            self._recompute()
            trainer.validating = True
            try:
                with self._averaged_module() as module, isolate_rng():
                    metrics, logged = validate_apart(trainer, module)
            finally:
                trainer.training = True
            self.sweep[alpha] = {name: float(value) for name, value in metrics.items()}
            prefix = f"{technique.prefix}{technique.suffix(trainer)}/{alpha:g}"
            named = {f"{prefix}/{name}": torch.as_tensor(value) for name, value in self.sweep[alpha].items()}
            log_metrics(trainer, named, {f"{prefix}/{name}" for name in logged})
        self.alpha = technique.alpha
        if technique.monitor is not None:
            self.alpha = self._best(technique.monitor)
        self.take()

    def _best(self, monitor: str) -> float:
        names = next(iter(self.sweep.values()))
        if monitor not in names:
            raise SettingError(
                f"monitor must be logged by validation, but is {monitor!r}, and there are "
                f"{', '.join(sorted(names)) or 'none'}"
            )
        choose = min if self.technique.mode == "min" else max
        return choose(self.sweep, key=lambda alpha: self.sweep[alpha][monitor])


def _whole(tensor: Tensor) -> Tensor:
    return whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor
