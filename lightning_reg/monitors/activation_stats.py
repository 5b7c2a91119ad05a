"""Statistics of what layers return while a network trains."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.core.facts import Chart, Place
from lightning_reg.core.lightning import ends_a_step, logs_now, step_number
from lightning_reg.core.scalars import log_scalars, withdraw_scalars
from lightning_reg.core.selection import as_patterns
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.core.tensorboard import Histogram, has_tensorboard, log_histograms, log_image
from lightning_reg.functional.measures.histograms import fine_edges, quantiles, rebinned
from lightning_reg.monitors.activations import ActivationWatch, Seen, Sums, select_watched
from lightning_reg.monitors.colorful_dimension import COLUMN_BINS, column_edges, draw_columns
from lightning_reg.monitors.gathering import gather
from lightning_reg.settings import as_sequence, check_count, check_dim, check_range

__all__ = ["ActivationStats"]

_MOST_COLUMNS = 256
_MOST_PANELS = 36


class ActivationStats(Technique):
    """Shows what layers return while a network trains: mean, deviation, zeros, dead units, saturation, histograms.

    What it does: at the steps that it measures, hooks on the chosen modules keep sums of what they return (all calls of
    a shared module, all micro-batches of a step, all processes). A unit (a channel, a feature) is dead when all it
    returned in the last ``window`` of these steps was exactly zero. With ``histogram_bins``, TensorBoard gets a
    histogram per module, and the colorful dimension: one image in which each column is the histogram of one step. Of
    complex activations the real and the imaginary parts are measured.

    When to use: to see whether an initialization and a learning rate keep activations alive: deviations near 1 that
    neither grow nor shrink from layer to layer, few dead units, no saturation. ``inspection.activation_statistics``
    does it for one batch, without a Trainer.

    Cost: at the steps that it measures, a read of each activation when it has just been written; elsewhere an ``if``
    per module. State: a number per unit, and with histograms 64 KB per module.

    Interacts with: torch.compile: its hooks are part of the compiled graph, without a break, if they are attached
    before the first step. Activation checkpointing: what is computed again isn't counted again. A histogram is made of
    at most 131,072 values of a call, evenly spaced; everything else, of all values.

    Args:
        include: Globs over names of modules; ``"*"`` alone means all that have no children. Of a module that returns
            several tensors the first counts.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names, such as ``"ReLU"``; all where empty.
        every_n_steps: Steps between two measurements, at least 1; where None, the steps that the trainer logs
            (``log_every_n_steps``). When the trainer logs, the latest measurement is shown, so the k-th, 2k-th, ...
            step is measured, as it is logged; the first only with 1. Before training, see ``activation_statistics``.
        histogram_bins: Bins of the histograms, at least 0; no histograms at 0.
        quantiles: Quantiles that are shown, each in [0, 1]; taken from the histogram, accurate to 3 %.
        near_zero: Absolute value below which an activation is near zero; at least 1e-15, in the activation's own units.
        saturation: Distance from a bound within which an activation is saturated, as a share of its range, in (0, 0.5):
            for Sigmoid, Tanh, Hardtanh, Hardsigmoid, Softsign, and for ReLU6 at its upper bound.
        window: Number of measured steps in which a unit must be zero throughout to count as dead, at least 1.
        unit_dim: Dimension of the units; where None, the second for convolutions, their norms, pooling and all other
            maps of four dimensions, else the last.
        sample: Number of samples at the beginning of each batch that are measured, at least 1; all where None.
        validation: Whether the first batch of each validation is measured, too.

    Logs:
        ``activation/<module>/mean``, ``std``, ``zeros``, ``near_zero``, and where they mean something ``saturated``,
        ``dead`` (once ``window`` steps were measured) and ``q<share>``; ``activation_val/<module>/...`` likewise;
        the histograms ``activation/<module>`` and the image ``activation/colorful_dimension``.

    Raises:
        SettingError: If a setting is out of its range, or a glob or type matches nothing.

    Reference:
        Xavier Glorot, Yoshua Bengio: Understanding the difficulty of training deep feedforward neural networks, AISTATS
        2010. The image: Stefano Giomo, Colorful Dimension, 2019.

    >>> ActivationStats(types=("ReLU",), histogram_bins=64).window
    10
    """

    place = Place.RUN
    charts = (
        Chart("Activations", "mean", r"activation/.*/mean$"),
        Chart("Activations", "standard deviation", r"activation/.*/std$"),
        Chart("Activations", "dead units", r"activation/.*/dead$"),
    )
    only_watches = True  # the audit leaves out what changes nothing
    state_dict = Technique.saved_state
    load_state_dict = Technique.load_saved_state

    def __init__(
        self,
        *,
        include: str | Sequence[str] = ("*",),
        exclude: str | Sequence[str] = (),
        types: str | Sequence[str | type] = (),
        every_n_steps: int | None = None,
        histogram_bins: int = 0,
        quantiles: Sequence[float] = (),
        near_zero: float = 1e-3,
        saturation: float = 0.01,
        window: int = 10,
        unit_dim: int | None = None,
        sample: int | None = None,
        validation: bool = False,
    ) -> None:
        for name, count in (("every_n_steps", every_n_steps), ("sample", sample)):
            if count is not None:
                check_count(name, count)
        check_count("histogram_bins", histogram_bins, low=0, high=10**4)
        check_count("window", window)
        check_range("near_zero", near_zero, low=1e-15)
        check_range("saturation", saturation, low=0, high=0.5, low_open=True, high_open=True)
        self.quantiles = as_sequence("quantiles", quantiles)
        for share in self.quantiles:
            check_range("quantiles", share, low=0, high=1)
        super().__init__()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.types = (types,) if isinstance(types, str) else as_sequence("types", types)
        self.every_n_steps = every_n_steps
        self.histogram_bins = histogram_bins
        self.near_zero = near_zero
        self.saturation = saturation
        self.window = window
        if unit_dim is not None:
            check_dim("unit_dim", unit_dim)
        self.unit_dim = unit_dim
        self.sample = sample
        self.validation = validation

    @property
    @override
    def state_key(self) -> str:
        types = [kind if isinstance(kind, str) else kind.__name__ for kind in self.types]
        return self._generate_state_key(include=self.include, types=types, every_n_steps=self.every_n_steps)

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return ActivationSession(self, run)


@dataclass(eq=False)
class ActivationSession(Session[ActivationStats]):
    """One fit, with a window and columns of the image by name of the module."""

    watch: ActivationWatch = field(init=False)
    suffix: str = field(init=False)
    draws: bool = field(init=False)
    is_measured: bool = False  # the step that runs
    latest: dict[str, Seen] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    silent: dict[str, Tensor] = kept(default_factory=dict)  # for how many measured steps each unit has been silent
    measured: dict[str, int] = kept(default_factory=dict)  # how many steps there were
    columns: dict[str, list[Tensor]] = kept(default_factory=dict)
    steps: list[int] = kept(default_factory=list)  # of the columns, equally far apart
    stride: int = kept(default=1)  # how many measured steps lie between two columns
    measurements: int = kept(default=0)
    drawn: int = 0  # the step of the latest image

    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        self.suffix = technique.suffix(run.trainer)
        self.draws = technique.histogram_bins > 0 and has_tensorboard(run.trainer)
        self._watch(self._watched())

    def _watched(self) -> dict[str, nn.Module]:
        technique = self.technique
        return select_watched(self.run.module, technique.include, technique.exclude, technique.types)

    def _watch(self, modules: dict[str, nn.Module]) -> None:
        technique = self.technique
        self.watch = ActivationWatch(
            modules,
            near_zero=technique.near_zero,
            saturation=technique.saturation,
            histograms=self.draws or bool(technique.quantiles),
            unit_dim=technique.unit_dim,
            sample=technique.sample,
        )
        for handle in self.watch.attach():
            self.run.until_end(handle)

    @override
    def kept(self) -> dict[str, Any]:
        columns = {name: _stacked(columns).half() for name, columns in self.columns.items()}
        return {**super().kept(), "columns": columns}

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        self.columns = {}  # those of a fit that runs aren't stacked as saved ones are
        super().load(state)
        self.columns = {name: list(columns.float()) for name, columns in state["columns"].items()}

    @override
    def ends(self, exception: BaseException | None) -> None:
        withdraw_scalars(self.run.trainer, self.tags)

    @override
    def batch_starts(self, batch_idx: int) -> None:
        every, trainer = self.technique.every_n_steps, self.run.trainer
        if batch_idx == 0 and self.watch.modules != (modules := self._watched()):
            self._watch(modules)  # layers were replaced since the last epoch
        if self.run.is_again:  # the second pass of SAM, say, with other weights
            self.watch.is_measuring = False
            return
        self.is_measured = logs_now(trainer) if every is None else step_number(trainer) % every == 0
        self.watch.is_measuring = self.is_measured

    @override
    def before_backward(self, loss: Tensor) -> None:
        self.watch.is_measuring = False  # a checkpointed layer is computed again

    @override
    def after_backward(self) -> None:
        # Under manual optimization there may be more to come.
        self.watch.is_measuring = self.is_measured and not self.run.is_again

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        self.watch.is_measuring = False
        if not ends_a_step(self.run.trainer):
            return
        if self.is_measured:
            self.latest = self.watch.take()
            if not self.latest:
                rank_zero_warn(
                    "ActivationStats watches modules of which none ran in this step, or none returned floating-point "
                    "numbers, or which were compiled before this fit"
                )
            for name, seen in self.latest.items():
                self._count_silent(name, seen)
            if self.draws:
                self._add_columns()
        if logs_now(self.run.trainer):
            self._log("activation", self.latest)
            self.latest = {}

    def _count_silent(self, name: str, seen: Seen) -> None:
        before = self.silent.get(name)
        if before is None or before.shape != seen.silent.shape:
            before = torch.zeros_like(seen.silent, dtype=torch.int32)
            self.measured[name] = 0
        self.silent[name] = torch.where(seen.silent, before.to(seen.silent.device) + 1, 0)
        self.measured[name] += 1

    def _dead(self, latest: dict[str, Seen], kind: str) -> dict[str, Tensor]:
        """Returns which units of each module are dead in this process, where the window is full."""
        window, training = self.technique.window, kind == "activation"
        full = (name for name in latest if training and self.measured.get(name, 0) >= window)
        return {name: self.silent[name] >= window for name in full}

    def _add_columns(self) -> None:
        """Adds a column for each module; where they become too many, every other one is left out from then on."""
        is_due = self.measurements % self.stride == 0
        self.measurements += 1
        if not is_due:
            return
        nothing = torch.zeros(COLUMN_BINS, dtype=torch.float32)  # of a module that didn't run in a step
        found = self._columns_now()
        for name in found:
            self.columns.setdefault(name, [nothing] * len(self.steps))
        for name, columns in self.columns.items():
            columns.append(found.get(name, nothing))
        self.steps.append(step_number(self.run.trainer))
        if len(self.steps) > _MOST_COLUMNS:
            self.columns = {name: columns[::2] for name, columns in self.columns.items()}
            self.steps = self.steps[::2]
            self.stride *= 2

    def _columns_now(self) -> dict[str, Tensor]:
        new = [name for name in self.latest if name not in self.columns][: _MOST_PANELS - len(self.columns)]
        fine = {
            name: seen.histogram
            for name, seen in self.latest.items()
            if seen.histogram is not None and (name in self.columns or name in new)
        }
        if not fine:
            return {}
        counts = rebinned(torch.stack([*fine.values()]), column_edges())
        shares = counts / counts.sum(1, keepdim=True).clamp(min=1)  # 16 bits hold them
        return dict(zip(fine, shares.float(), strict=True))

    @override
    def validation_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        is_first = batch_idx == 0 and dataloader_idx == 0
        self.watch.is_measuring = self.technique.validation and is_first and not self.run.trainer.sanity_checking

    @override
    def validation_batch_ends(self) -> None:
        if self.watch.is_measuring:
            self.watch.is_measuring = False
            self._log("activation_val", self.watch.take())

    def _log(self, kind: str, latest: dict[str, Seen]) -> None:
        """Logs a measurement, with one reduction over processes and one transfer."""
        trainer, watch = self.run.trainer, self.watch
        gathered = gather(trainer, list(watch.modules), latest, self._dead(latest, kind), histograms=watch.histograms)
        values: dict[str, float] = {}
        histograms: dict[str, Histogram] = {}
        for name, found in gathered.items():
            statistics = found.sums.statistics(bounded=watch.is_bounded(name))
            if not math.isfinite(statistics["mean"]) or not math.isfinite(statistics["std"]):
                self._warn_not_finite(name)
                continue
            if found.dead is not None:
                statistics["dead"] = found.dead
            if found.histogram is not None:
                statistics |= self._quantiles(found.histogram)
                if self.draws:
                    histograms[f"{kind}{self.suffix}/{name}"] = self._histogram(found.histogram, found.sums)
            values |= {f"{kind}{self.suffix}/{name}/{what}": value for what, value in statistics.items()}
        self.tags |= values.keys()
        log_scalars(trainer, values)
        log_histograms(trainer, histograms, step_number(trainer) - 1)

    def _quantiles(self, fine: Tensor) -> dict[str, float]:
        shares = self.technique.quantiles
        values = quantiles(fine, torch.tensor(shares, dtype=torch.float64)).tolist()
        return {f"q{share:g}": value for share, value in zip(shares, values, strict=True)}

    def _histogram(self, fine: Tensor, sums: Sums) -> Histogram:
        borders, filled = fine_edges(), fine.nonzero().flatten()
        low, high = float(borders[filled[0]]), float(borders[filled[-1] + 1])
        edges = torch.linspace(low, high, self.technique.histogram_bins + 1, dtype=torch.float64)
        return Histogram(rebinned(fine, edges), edges, sums.total, sums.squares)

    def _warn_not_finite(self, name: str) -> None:
        if name not in self.warned:
            self.warned.add(name)
            rank_zero_warn(f"What {name} returns isn't finite")

    @override
    def epoch_ends(self) -> None:
        # The image shows all of the fit: one that is hardly longer than the latest shows nothing new.
        if step_number(self.run.trainer) >= 1.1 * self.drawn:
            self._draw()

    @override
    def train_ends(self) -> None:
        if step_number(self.run.trainer) > self.drawn:
            self._draw()

    def _draw(self) -> None:
        trainer = self.run.trainer
        if not self.draws or not self.columns or not trainer.is_global_zero:
            return
        self.drawn = step_number(trainer)
        kinds = {name: type(module).__name__ for name, module in self.watch.modules.items()}
        drawn = {f"{name} {kinds[name]}": _stacked(columns).cpu() for name, columns in self.columns.items()}
        tag = f"activation{self.suffix}/colorful_dimension"
        log_image(trainer, tag, draw_columns(drawn, self.steps), step_number(trainer) - 1)


def _stacked(columns: list[Tensor]) -> Tensor:
    """Returns columns stacked to (T, COLUMN_BINS); those from before a resume come from the CPU."""
    return torch.stack([column.to(columns[-1].device) for column in columns])
