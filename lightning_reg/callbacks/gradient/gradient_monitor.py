"""Norms of gradients before and after clipping, and how far each step moves the weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.attach.clipping import KnownNorms
from lightning_reg.attach.gradients import (
    gradient_norms,
    gradient_scale,
    optimizer_index,
    optimizer_name,
    parameters_of,
    scaler_scale,
)
from lightning_reg.attach.measurement import Clip, Measurement, NotFinite, StepCounts, is_shorter
from lightning_reg.attach.selection import as_patterns, plain_name, select_layers
from lightning_reg.attach.technique import (
    GradientTechnique,
    Position,
    callbacks_of,
    instance_suffix,
    logs_now,
)
from lightning_reg.callbacks.gradient.gradient_clipping import GradientClipping
from lightning_reg.core.wrapping import around
from lightning_reg.functional.gradients import total_norm
from lightning_reg.optim import owned_parameters
from lightning_reg.settings import check_count

__all__ = ["GradientMonitor"]


class GradientMonitor(GradientTechnique):
    """Shows how long gradients are, before and after clipping, whoever clips them.

    What it does: measures the gradient with which each optimizer is about to step (penalties and noise included, no
    gradient scaler's scale in it) and the one with which it did step, for a clipping by ``GradientClipping``, by
    ``Trainer(gradient_clip_val=...)`` or by the module itself under manual optimization. A step whose gradient isn't
    finite is counted rather than logged, and its parameters are named.

    When to use: to choose a clipping threshold (a clip fraction of 1 to 10 % is usual) and a learning rate (an update
    ratio near 1e-3 is usual); to find the layer that diverges.

    Cost: at the steps that it measures it reads gradients once, and again after a clipping that isn't
    ``GradientClipping`` by norm; ``update_ratio`` copies the weights for the length of the step. At other steps
    nothing. State: a few numbers.

    Args:
        every_n_steps: Optimizer steps between two measurements, at least 1; where None, the steps that the trainer
            logs (``log_every_n_steps``). When the trainer logs, the latest measurement is shown.
        layers: Globs over layer names whose norms are shown one by one; none where empty.
        max_layers: How many layers at the most; the largest are taken.
        update_ratio: Whether the length of each update relative to that of the weights is shown.

    Logs:
        ``grad/norm`` and ``grad/norm_clipped``; ``grad/clip_threshold``; ``grad/clip_fraction``, the share of this
        epoch's steps that were clipped (with ``GradientClipping`` of all steps, else of those measured);
        ``grad/nonfinite_steps`` since the fit began, of the steps that were measured or that a gradient scaler
        skipped; ``grad/norm/<layer>``, before clipping; ``update/ratio`` and ``update/ratio/<layer>``. Of several
        optimizers with ``_optimizer_1`` and so on.

    Interacts with: manual optimization: where the module clips by itself, ``grad/norm`` is that after the last
    ``manual_backward``, and ``grad/norm_clipped`` contains the penalties, which come later.

    Raises:
        SettingError: If a setting is out of its range, a glob matches nothing, or the optimizer is LBFGS.

    Reference:
        Update ratios: Andrej Karpathy, CS231n, Learning: Parameter Updates, 2015.

    >>> GradientMonitor(layers=("encoder.*",), update_ratio=True).max_layers
    32
    """

    position = Position.MEASUREMENT
    only_watches = True  # the audit leaves out what changes nothing

    def __init__(
        self,
        *,
        every_n_steps: int | None = None,
        layers: Sequence[str] = (),
        max_layers: int = 32,
        update_ratio: bool = False,
    ) -> None:
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        check_count("max_layers", max_layers)
        super().__init__()
        self.every_n_steps = every_n_steps
        self.layers = as_patterns("layers", layers)
        self.max_layers = max_layers
        self.update_ratio = update_ratio
        self._counts: dict[int, StepCounts] = {}
        self._saved_counts: dict[int, dict[str, int]] = {}
        self._latest: dict[int, dict[str, Tensor]] = {}
        self._not_finite: dict[int, NotFinite] = {}
        self._forget()

    def _forget(self) -> None:
        self._trainer: Trainer | None = None
        self._layers: dict[str, list[nn.Parameter]] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._clippings: list[GradientClipping] = []
        # Of the steps in this batch, by optimizer: under manual optimization the norms after the last backward pass
        # and the norm when the step begins; what clips by hand; the measurement that is running, if the step has one.
        self._backward_norms: dict[nn.Parameter, Tensor] = {}
        self._first_norms: dict[int, Tensor] = {}
        self._clips: dict[int, Clip] = {}
        self._running: dict[int, Measurement | None] = {}
        self._suffix = ""
        self._warned: set[tuple[str, ...]] = set()

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(
            every_n_steps=self.every_n_steps, layers=self.layers, update_ratio=self.update_ratio
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._counts, self._saved_counts, self._latest, self._not_finite = {}, {}, {}, {}

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        self._suffix = instance_suffix(trainer, self)
        self._names = {each.parameter: plain_name(each.name) for each in owned_parameters(pl_module)}
        self._clippings = [each for each in callbacks_of(trainer) if isinstance(each, GradientClipping)]
        if self.layers:
            self._layers, left_out = select_layers(pl_module, self.layers, self.max_layers)
            if left_out:
                rank_zero_info(f"GradientMonitor shows the {self.max_layers} largest layers, without {left_out} others")
        # The Trainer's clipping, and a module's own self.clip_gradients(...), both end there.
        self.handles.append(around(trainer.precision_plugin, "clip_gradients", self._clip_gradients))

    @override
    def release(self) -> None:
        self._forget()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_after_backward(trainer, pl_module)
        if pl_module.automatic_optimization or not self._measures_next(trainer):
            return
        # Under manual optimization the module may clip before any other hook runs.
        parameters = [each for each in self._names if each.grad is not None]
        if parameters:
            scale = scaler_scale(trainer, parameters[0].device)
            norms = gradient_norms(parameters)
            norms = norms if scale is None else norms / scale
            self._backward_norms = dict(zip(parameters, norms.unbind(), strict=True))

    @override
    def step_begins(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # What gradients are when a module that clips by hand has done so.
        parameters = [each for each in parameters_of(optimizer) if each.grad is not None]
        if self._backward_norms and parameters:
            scale = gradient_scale(trainer, optimizer)
            norm = total_norm(gradient_norms(parameters))
            self._first_norms[optimizer_index(trainer, optimizer)] = norm if scale is None else norm / scale

    @override
    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = [each for each in parameters_of(optimizer) if each.grad is not None]
        if not parameters:
            return
        index = optimizer_index(trainer, optimizer)
        self._count_if_skipped(index)
        counts = self._counts_of(index)
        counts.steps += 1
        self._running[index] = None
        if self._is_measured(trainer, counts.steps):
            self._running[index] = self._begin(trainer, optimizer, parameters)

    def _counts_of(self, index: int) -> StepCounts:
        if index not in self._counts:
            device = torch.device("cpu")
            if self._trainer is not None:
                device = next(each.device for each in parameters_of(self._trainer.optimizers[index]))
            saved = self._saved_counts.pop(index, None)
            self._counts[index] = StepCounts(device) if saved is None else StepCounts.from_state(saved, device)
        return self._counts[index]

    def _is_measured(self, trainer: Trainer, step: int) -> bool:
        return logs_now(trainer) if self.every_n_steps is None else step % self.every_n_steps == 0

    def _measures_next(self, trainer: Trainer) -> bool:
        optimizers = range(len(trainer.optimizers))
        return any(self._is_measured(trainer, self._counts_of(index).steps + 1) for index in optimizers)

    def _begin(self, trainer: Trainer, optimizer: Optimizer, parameters: list[nn.Parameter]) -> Measurement:
        index, scale = optimizer_index(trainer, optimizer), gradient_scale(trainer, optimizer)
        norms = gradient_norms(parameters)
        for clipping in self._clippings:  # they come next, and needn't compute the norms again
            clipping.known_norms = KnownNorms.of(parameters, norms)
            clipping.reports.pop(index, None)
        measurement = Measurement(parameters, norms if scale is None else norms / scale)
        if self.update_ratio:
            measurement.copy_weights()
        for clipping in self._clippings:
            cut = [each for each in parameters if each in clipping.chosen]
            if clipping.algorithm == "value" and cut:
                largest = gradient_norms(cut, torch.inf).max()
                measurement.clip.largest = largest if scale is None else largest / scale
        if index in self._first_norms:
            self._see_clipping_by_hand(measurement, index)
        return measurement

    def _see_clipping_by_hand(self, measurement: Measurement, index: int) -> None:
        """Shows what a module clipped before the step; else what is about to be, techniques included."""
        nothing = measurement.norms.new_zeros(())
        after_backward = torch.stack([self._backward_norms.get(each, nothing) for each in measurement.parameters])
        by_hand = is_shorter(self._first_norms[index], total_norm(after_backward))
        if not self._clippings:
            measurement.clipped_norm = measurement.norm
            measurement.clipped = by_hand
        measurement.clip.threshold = self._clips.get(index, Clip()).threshold
        measurement.norms = torch.where(by_hand, after_backward, measurement.norms)

    def _clip_gradients(
        self,
        clip: Callable[..., None],
        optimizer: Any,
        clip_val: float = 0.0,
        gradient_clip_algorithm: str = GradClipAlgorithmType.NORM,
    ) -> None:
        """Runs around Lightning's clipping: that of the Trainer, after all other hooks, or a module's own, before."""
        if self._trainer is None:
            clip(optimizer, clip_val, gradient_clip_algorithm)
            return
        bare = getattr(optimizer, "optimizer", optimizer)  # a module has Lightning's wrapper in hand
        index = optimizer_index(self._trainer, bare)
        measurement = self._running.get(index)
        if measurement is None:
            if clip_val > 0:
                self._clips[index] = Clip(self._unscaled(bare, clip_val))
            clip(optimizer, clip_val, gradient_clip_algorithm)
            return
        if clip_val > 0:
            measurement.clip = Clip(clip_val)
            if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
                measurement.clip.largest = gradient_norms(measurement.parameters, torch.inf).max()
        clip(optimizer, clip_val, gradient_clip_algorithm)
        # Here, because some optimizers change gradients in their step.
        scale = gradient_scale(self._trainer, bare)
        if index not in {key for each in self._clippings for key in each.reports}:
            norm = total_norm(gradient_norms(measurement.parameters))
            measurement.clipped_norm = norm if scale is None else norm / scale

    def _unscaled(self, optimizer: Optimizer, clip_val: float) -> float | Tensor:
        """Who clips before the step, by hand, has a scaler's scale in the gradients."""
        if self._trainer is None or not parameters_of(optimizer):
            return clip_val
        scale = scaler_scale(self._trainer, parameters_of(optimizer)[0].device)
        return clip_val if scale is None else clip_val / scale

    @override
    def after_step(self, optimizer: Optimizer) -> None:
        if self._trainer is None:
            return
        index = optimizer_index(self._trainer, optimizer)
        measurement = self._running.pop(index, None)
        if measurement is None:
            return
        reports = [each.reports[index] for each in self._clippings if index in each.reports]
        if len(reports) == 1:
            measurement.clip.threshold = reports[0].threshold
            measurement.clipped_norm = reports[0].clipped_norm_of(measurement.parameters)
            measurement.clipped = reports[0].clipped
        measurement.finish()
        self._counts_of(index).add(measurement, self._trainer.current_epoch)
        self._note_not_finite(index, measurement)
        self._latest[index] = measurement.values(self._layers)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if outputs or not pl_module.automatic_optimization:  # else it returned no loss, and there was no step
            for index in list(self._running):
                self._count_if_skipped(index)
        self._running.clear()
        self._backward_norms, self._first_norms, self._clips = {}, {}, {}
        # Lightning's log costs more than the measurement, and drops what is logged at other steps.
        if logs_now(trainer):
            for index in sorted({*self._counts, *self._latest}):
                self._log(trainer, pl_module, index)

    def _count_if_skipped(self, index: int) -> None:
        """Counts a step that a gradient scaler didn't let the optimizer make; that is known without a look at it."""
        if index not in self._running or self._trainer is None:
            return
        self._running.pop(index)
        self._counts_of(index).skipped += 1
        parameters = [each for each in parameters_of(self._trainer.optimizers[index]) if each.grad is not None]
        if parameters:
            self._note_not_finite(index, Measurement(parameters, gradient_norms(parameters)))
            self._latest.pop(index, None)

    def _note_not_finite(self, index: int, measurement: Measurement) -> None:
        names = [self._names.get(each, "a parameter outside the module") for each in measurement.parameters]
        self._not_finite.setdefault(index, NotFinite()).note(names, measurement.norms)

    def _name(self, index: int) -> None:
        """Says whose gradients weren't finite, once for the same parameters."""
        names = tuple(self._not_finite.pop(index, NotFinite()).names())
        if names and names not in self._warned:
            self._warned.add(names)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            rank_zero_warn(f"The gradient isn't finite in {', '.join(names[:5])}{more}")

    def _log(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        counts = self._counts_of(index)
        values = self._latest.pop(index, {}) | {
            "grad/nonfinite_steps": counts.nonfinite + counts.skipped,
            "grad/clip_fraction": self._clip_fraction(index),
        }
        # One transfer for everything.
        numbers = torch.stack([value.to(counts.measured.device, torch.float32) for value in values.values()]).tolist()
        shown = dict(zip(values, numbers, strict=True))
        if shown["grad/nonfinite_steps"]:
            self._name(index)
        if not math.isfinite(shown.get("grad/norm", 0.0)):
            shown = {"grad/nonfinite_steps": shown["grad/nonfinite_steps"]}
        suffix = optimizer_name(trainer, trainer.optimizers[index]) + self._suffix
        # A threshold that isn't known yet is infinite.
        pl_module.log_dict({tag + suffix: value for tag, value in shown.items() if math.isfinite(value)})

    def _clip_fraction(self, index: int) -> Tensor:
        """Returns the share of all steps where it is known, else of those that were measured."""
        known = self._clippings[0].clip_fraction(index) if len(self._clippings) == 1 else None
        return self._counts_of(index).clip_fraction() if known is None else known

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": self._saved_counts | {index: counts.state_dict() for index, counts in self._counts.items()},
            "latest": {
                index: {tag: value.cpu() for tag, value in values.items()} for index, values in self._latest.items()
            },
            "not_finite": {index: noted.names() for index, noted in self._not_finite.items()},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved_counts = dict(state_dict["counts"])
        self._latest = dict(state_dict["latest"])
        self._not_finite = {index: NotFinite(names) for index, names in state_dict["not_finite"].items()}
