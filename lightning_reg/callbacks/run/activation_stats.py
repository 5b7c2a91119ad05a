"""What layers return while a network trains."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from typing_extensions import override

from lightning_reg.attach.activations import ActivationWatch, Seen, Sums, select_watched
from lightning_reg.attach.colourful_dimension import column_edges, draw_columns, thinned
from lightning_reg.attach.gathering import gather
from lightning_reg.attach.scalars import ends_a_step, log_scalars, step_number, withdraw_scalars
from lightning_reg.attach.selection import as_patterns
from lightning_reg.attach.technique import Technique, instance_suffix, logs_now
from lightning_reg.functional.histograms import fine_edges, quantiles, rebinned
from lightning_reg.settings import check_count, check_range
from lightning_reg.tensorboard import Histogram, has_tensorboard, log_histograms, log_picture

__all__ = ["ActivationStats"]

_MOST_COLUMNS = 256
_MOST_PANELS = 36


class ActivationStats(Technique):
    """Shows what layers return while a network trains: mean, deviation, zeros, dead units, saturation, histograms.

    What it does: at the steps that it measures, hooks on the chosen modules keep sums of what they return (all calls of
    a shared module, all micro-batches of a step, all processes). A unit (a channel, a feature) is dead when all it
    returned in the last ``window`` of these steps was exactly zero. With ``histogram_bins``, TensorBoard gets a
    histogram a module, and the colourful dimension: one picture in which each column is the histogram of one step.

    When to use: to see whether an initialization and a learning rate keep activations alive: deviations near 1 that
    neither grow nor shrink from layer to layer, few dead units, no saturation. ``inspection.activation_statistics``
    does it for one batch, without a Trainer.

    Cost: at the steps that it measures, a read of each activation when it has just been written; elsewhere an ``if`` a
    module. State: a number a unit, and with histograms 64 KB a module.

    Interacts with: torch.compile: its hooks are part of the compiled graph, without a break, if they are attached
    before the first step. Activation checkpointing: what is computed again isn't counted again. A histogram is made of
    131,072 values of a call at the most, evenly spaced; everything else, of all values.

    Args:
        include: Globs over names of modules; ``"*"`` alone means all that have no children. Of a module that returns
            several tensors the first counts.
        exclude: Globs likewise, of modules that are left out.
        types: Classes of modules, or their names, such as ``"ReLU"``; all where empty.
        every_n_steps: Steps between two measurements, at least 1; where None, the steps that the trainer logs
            (``log_every_n_steps``). When the trainer logs, the latest measurement is shown.
        histogram_bins: Bins of the histograms, at least 0; no histograms at 0.
        quantiles: Which quantiles are shown, each in [0, 1], to 3 %; taken from the histogram.
        near_zero: Activations of a smaller size are near zero; at least 1e-15, in their own units.
        saturation: Activations within this share of their range from a bound are saturated, in (0, 0.5): of Sigmoid,
            Tanh, Hardtanh, Hardsigmoid, Softsign, and of ReLU6 at its upper bound.
        window: Measured steps in which a dead unit was silent, at least 1.
        unit_dim: Dimension of the units; where None, the second for convolutions, their norms, pooling and all other
            maps of four dimensions, else the last.
        sample: How many samples of each batch are looked at, the first; all where None.
        validation: Whether the first batch of each validation is measured, too.

    Logs:
        ``activation/<module>/mean``, ``std``, ``zeros``, ``near_zero``, and where they mean something ``saturated``,
        ``dead`` (once ``window`` steps were measured) and ``q<share>``; ``activation_val/<module>/...`` likewise;
        the histograms ``activation/<module>`` and the picture ``activation/colourful_dimension``.

    Raises:
        SettingError: If a setting is out of its range, or a glob or type matches nothing.

    Reference:
        Xavier Glorot, Yoshua Bengio: Understanding the difficulty of training deep feedforward neural networks, AISTATS
        2010. The picture: Stefano Giomo, Colorful Dimension, 2019.

    >>> ActivationStats(types=("ReLU",), histogram_bins=64).window
    10
    """

    only_watches = True  # the audit leaves out what changes nothing

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
        check_count("histogram_bins", histogram_bins, low=0)
        check_count("window", window)
        check_range("near_zero", near_zero, low=1e-15)
        check_range("saturation", saturation, low=0, high=0.5, low_open=True, high_open=True)
        for share in quantiles:
            check_range("quantiles", share, low=0, high=1)
        super().__init__()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.types = (types,) if isinstance(types, str) else tuple(types)
        self.every_n_steps = every_n_steps
        self.histogram_bins = histogram_bins
        self.quantiles = tuple(quantiles)
        self.near_zero = near_zero
        self.saturation = saturation
        self.window = window
        self.unit_dim = unit_dim
        self.sample = sample
        self.validation = validation
        self._watch: ActivationWatch | None = None
        self._is_measured = False
        self._suffix = ""
        self._draws = False
        self._types: dict[str, str] = {}
        self._tags: set[str] = set()
        self._latest: dict[str, Seen] = {}
        self._warned: set[str] = set()
        # By module: for how many measured steps each unit has been silent, how many there were, a column a step.
        self._silent: dict[str, Tensor] = {}
        self._measured: dict[str, int] = {}
        self._columns: dict[str, list[Tensor]] = {}
        self._steps: list[int] = []
        self._drawn = 0  # the step of the latest picture

    @property
    @override
    def state_key(self) -> str:
        types = [each if isinstance(each, str) else each.__name__ for each in self.types]
        return self._generate_state_key(include=self.include, types=types, every_n_steps=self.every_n_steps)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._silent, self._measured, self._columns, self._steps, self._drawn = {}, {}, {}, [], 0

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._suffix = instance_suffix(trainer, self)
        self._draws = self.histogram_bins > 0 and has_tensorboard(trainer)
        chosen = select_watched(pl_module, self.include, self.exclude, self.types)
        self._types = {name: type(each).__name__ for name, each in chosen.items()}
        self._watch = ActivationWatch(
            chosen,
            near_zero=self.near_zero,
            saturation=self.saturation,
            histograms=self._draws or bool(self.quantiles),
            unit_dim=self.unit_dim,
            sample=self.sample,
        )
        self.handles += self._watch.attach()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        withdraw_scalars(trainer, self._tags)
        super().teardown(trainer, pl_module, stage)

    @override
    def release(self) -> None:
        self._watch = None
        self._latest, self._warned = {}, set()

    def _measure(self, yes: bool) -> None:
        if self._watch is not None:
            self._watch.is_measuring = yes

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        every = self.every_n_steps
        self._is_measured = logs_now(trainer) if every is None else step_number(trainer) % every == 0
        self._measure(self._is_measured)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._measure(False)  # a checkpointed layer is computed again

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure(self._is_measured)  # under manual optimization there may be more to come

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._measure(False)
        if self._watch is None or not ends_a_step(trainer):
            return
        if self._is_measured:
            self._latest = self._watch.take()
            if not self._latest:
                rank_zero_warn("ActivationStats watches modules of which none ran in this step")
            for name, seen in self._latest.items():
                self._count_silent(name, seen)
            if self._draws:
                self._add_columns(trainer)
        if logs_now(trainer):
            self._log(trainer, "activation", self._latest)
            self._latest = {}

    def _count_silent(self, name: str, seen: Seen) -> None:
        before = self._silent.get(name)
        if before is None or before.shape != seen.silent.shape:
            before = torch.zeros_like(seen.silent, dtype=torch.int32)
            self._measured[name] = 0
        self._silent[name] = torch.where(seen.silent, before.to(seen.silent.device) + 1, 0)
        self._measured[name] += 1

    def _dead(self, latest: dict[str, Seen], kind: str) -> dict[str, Tensor]:
        """Returns which units of each module are dead in this process, where the window is full."""
        training = kind == "activation"
        full = (name for name in latest if training and self._measured.get(name, 0) >= self.window)
        return {name: self._silent[name] >= self.window for name in full}

    def _add_columns(self, trainer: Trainer) -> None:
        shown = [name for name in self._latest if name in self._columns or len(self._columns) < _MOST_PANELS]
        fine = [self._latest[name].histogram for name in shown]
        stacked = torch.stack([each for each in fine if each is not None])
        counts = rebinned(stacked, column_edges())
        shares = counts / counts.sum(1, keepdim=True).clamp(min=1)  # 16 bits hold them
        for name, column in zip(shown, shares.float(), strict=True):
            columns = self._columns.setdefault(name, [])
            columns.append(column)
            if len(columns) >= 2 * _MOST_COLUMNS:
                self._columns[name] = list(_stacked(columns))
        self._steps = [*self._steps[:1], step_number(trainer)]

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        measured = self.validation and not trainer.sanity_checking and batch_idx == 0 and dataloader_idx == 0
        self._measure(measured)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._watch is not None and self._watch.is_measuring:
            self._measure(False)
            self._log(trainer, "activation_val", self._watch.take())

    def _log(self, trainer: Trainer, kind: str, latest: dict[str, Seen]) -> None:
        """Shows a measurement: one reduction over processes, one transfer."""
        if self._watch is None:
            return
        gathered = gather(
            trainer, list(self._watch.modules), latest, self._dead(latest, kind), histograms=self._watch.histograms
        )
        values: dict[str, float] = {}
        histograms: dict[str, Histogram] = {}
        for name, found in gathered.items():
            statistics = found.sums.statistics(bounded=self._watch.is_bounded(name))
            if not math.isfinite(statistics["mean"]) or not math.isfinite(statistics["std"]):
                self._warn_not_finite(name)
                continue
            if found.dead is not None:
                statistics["dead"] = found.dead
            if found.histogram is not None:
                statistics |= self._quantiles(found.histogram)
                if self._draws:
                    histograms[f"{kind}{self._suffix}/{name}"] = self._histogram(found.histogram, found.sums)
            values |= {f"{kind}{self._suffix}/{name}/{what}": value for what, value in statistics.items()}
        self._tags |= values.keys()
        log_scalars(trainer, values)
        log_histograms(trainer, histograms, step_number(trainer) - 1)

    def _quantiles(self, fine: Tensor) -> dict[str, float]:
        values = quantiles(fine, torch.tensor(self.quantiles, dtype=torch.float64)).tolist()
        return {f"q{share:g}": value for share, value in zip(self.quantiles, values, strict=True)}

    def _histogram(self, fine: Tensor, sums: Sums) -> Histogram:
        borders, filled = fine_edges(), fine.nonzero().flatten()
        low, high = float(borders[filled[0]]), float(borders[filled[-1] + 1])
        edges = torch.linspace(low, high, self.histogram_bins + 1, dtype=torch.float64)
        return Histogram(rebinned(fine, edges), edges, sums.total, sums.squares)

    def _warn_not_finite(self, name: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            rank_zero_warn(f"What {name} returns isn't finite")

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The picture shows all of the fit: one that is hardly longer than the latest shows nothing new.
        if step_number(trainer) >= 1.1 * self._drawn:
            self._draw(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if step_number(trainer) > self._drawn:
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if not self._draws or not self._columns or not trainer.is_global_zero:
            return
        self._drawn = step_number(trainer)
        drawn = {f"{name} {self._types[name]}": _stacked(columns).cpu() for name, columns in self._columns.items()}
        tag = f"activation{self._suffix}/colourful_dimension"
        log_picture(trainer, tag, draw_columns(drawn, self._steps), step_number(trainer) - 1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "silent": {name: each.cpu() for name, each in self._silent.items()},
            "measured": dict(self._measured),
            "columns": {name: _stacked(columns).half().cpu() for name, columns in self._columns.items()},
            "steps": list(self._steps),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._silent = dict(state_dict["silent"])
        self._measured = dict(state_dict["measured"])
        self._columns = {name: list(each.float()) for name, each in state_dict["columns"].items()}
        self._steps = list(state_dict["steps"])


def _stacked(columns: list[Tensor]) -> Tensor:
    """Returns (T, COLUMN_BINS), thinned; those of before a resume come from the CPU."""
    return thinned(torch.stack([each.to(columns[-1].device) for each in columns]), _MOST_COLUMNS)
