"""Norms of gradients before and after clipping, and how far each step moves the weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.core.clipping import ClippingSession
from lightning_reg.core.facts import Chart, Place, Position
from lightning_reg.core.gradients import gradient_norms
from lightning_reg.core.lightning import (
    gradient_scale,
    is_overridden,
    logs_now,
    optimizer_index,
    optimizer_name,
    scaler_scale,
)
from lightning_reg.core.selection import as_patterns, plain_name, select_layers
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step, trainable
from lightning_reg.core.technique import Technique
from lightning_reg.functional.norms import total_norm
from lightning_reg.monitors.measurement import Measurement, NotFinite, OptimizerRecord, SeenClip, StepCounts, is_shorter
from lightning_reg.optim import owned_parameters
from lightning_reg.settings import check_count

__all__ = ["GradientMonitor"]


class GradientMonitor(Technique):
    """Shows how long gradients are, before and after clipping, whoever clips them.

    What it does: measures the gradient with which each optimizer is about to step (penalties and noise included,
    without a gradient scaler's scale) and the one with which it did step, for a clipping by ``GradientClipping``, by
    ``Trainer(gradient_clip_val=...)`` or by the module itself, under manual optimization or in its ``optimizer_step``.
    Where an optimizer calls its closure several times, the last gradient counts. A step whose gradient isn't finite is
    counted rather than logged, and its parameters are named.

    When to use: to choose a clipping threshold (a clip fraction of 1 to 10 % is usual) and a learning rate (an update
    ratio near 1e-3 is usual); to find the layer that diverges.

    Cost: at the steps that it measures it reads gradients once, and again after a clipping that isn't
    ``GradientClipping`` by norm; ``update_ratio`` copies the weights for the duration of the step. At other steps
    nothing. State: a few numbers.

    Args:
        every_n_steps: Optimizer steps between two measurements, at least 1; where None, the steps that the trainer
            logs (``log_every_n_steps``). When the trainer logs, the latest measurement is shown.
        layers: Globs over names of layers whose norms are shown one by one; none where empty.
        max_layers: Largest number of layers, at least 1; the largest ones are shown.
        update_ratio: Whether the length of each update relative to that of the weights is shown.

    Logs:
        ``grad/norm`` and ``grad/norm_clipped``; ``grad/clip_threshold``; ``grad/clip_fraction``, the share of this
        epoch's steps that were clipped (with ``GradientClipping`` of all steps, else of those measured);
        ``grad/nonfinite_steps`` since the fit began, of the steps that were measured or that a gradient scaler
        skipped; ``grad/norm/<layer>``, before clipping; ``update/ratio`` and ``update/ratio/<layer>``. Of several
        optimizers with ``_optimizer_1`` and so on.

    Interacts with: a module that clips by itself before the step: ``grad/norm`` is that after the last backward pass,
    and ``grad/norm_clipped`` contains the penalties, which come later.

    Raises:
        SettingError: If a setting is out of its range, a glob matches nothing, or the optimizer is LBFGS.

    Reference:
        Update ratios: Andrej Karpathy, CS231n, Learning: Parameter Updates, 2015.

    >>> GradientMonitor(layers=("encoder.*",), update_ratio=True).max_layers
    32
    """

    place = Place.GRADIENT
    position = Position.MEASUREMENT
    charts = (
        Chart("Gradients", "norm before and after clipping", r"grad/(norm|norm_clipped|clip_threshold)(_opt.*)?$"),
        Chart("Gradients", "share of steps that are clipped", r"grad/clip_fraction"),
        Chart("Gradients", "norm by layer", r"grad/norm/", needs="layers"),
        Chart("Gradients", "update ratio", r"update/ratio", needs="update_ratio"),
    )
    changes_gradients = True
    state_dict = Technique.saved_state
    load_state_dict = Technique.load_saved_state
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

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(
            every_n_steps=self.every_n_steps, layers=self.layers, update_ratio=self.update_ratio
        )

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return GradientMonitorSession(self, run)


@dataclass(eq=False)
class GradientMonitorSession(Session[GradientMonitor]):
    """One fit of the monitor, with a record by index of the optimizer."""

    names: dict[nn.Parameter, str] = field(init=False)
    layers: dict[str, list[nn.Parameter]] = field(default_factory=dict)
    records: dict[int, OptimizerRecord] = field(default_factory=dict)
    # Whether the module may clip between the backward pass and the step's first hook; if so, the norms after that pass.
    may_clip_before: bool = field(init=False)
    backward_norms: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    warned: set[tuple[str, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        self.names = {
            owned_parameter.parameter: plain_name(owned_parameter.name)
            for owned_parameter in owned_parameters(run.module)
        }
        if technique.layers:
            self.layers, left_out = select_layers(run.module, technique.layers, technique.max_layers)
            if left_out:
                rank_zero_info(
                    f"GradientMonitor shows the {technique.max_layers} largest layers, without {left_out} others"
                )
        self.may_clip_before = not run.module.automatic_optimization or is_overridden(run.module, "optimizer_step")
        # The Trainer's clipping, and a module's own self.clip_gradients(...), both end there.
        run.around(run.trainer.precision_plugin, "clip_gradients", self._clip_gradients)

    # A clipping before the step

    @override
    def after_backward(self) -> None:
        if not self.may_clip_before or self.run.is_again or not self._measures_next():
            return
        parameters = [parameter for parameter in self.names if parameter.grad is not None]
        if parameters:
            scale = scaler_scale(self.run.trainer, parameters[0].device)
            norms = gradient_norms(parameters)
            norms = norms if scale is None else norms / scale
            self.backward_norms = dict(zip(parameters, norms.unbind(), strict=True))

    @override
    def terms_joined(self, step: Step) -> None:
        # Not those that another optimizer shares: the module may have clipped them already.
        parameters = [parameter for parameter in _with_gradient(step) if parameter in step.fresh]
        if self.backward_norms and parameters:
            norms = step.unscaled(step.norms(parameters))
            self.backward_norms.update(zip(parameters, norms.unbind(), strict=True))

    @override
    def step_begins(self, step: Step) -> None:
        parameters = _with_gradient(step)
        if self.backward_norms and parameters:
            self._record(step.index).first_norm = step.unscaled(total_norm(step.norms(parameters)))

    # The step

    @override
    def before_step(self, step: Step) -> None:
        parameters = _with_gradient(step)
        if not parameters:
            return
        record = self._record(step.index)
        self._count_if_skipped(step.index)
        if not record.is_open:  # else the optimizer calls its closure again
            record.counts.steps += 1
        record.is_open = True
        earlier, record.running = record.running, None
        if self._is_measured(record.counts.steps):
            record.running = self._begin(step, parameters, record, earlier)

    def _begin(
        self, step: Step, parameters: list[nn.Parameter], record: OptimizerRecord, earlier: Measurement | None
    ) -> Measurement:
        measurement = Measurement(parameters, step.unscaled(step.norms(parameters)))
        if self.technique.update_ratio:
            if earlier is not None and _same(earlier.parameters, parameters):
                measurement.weights = earlier.weights  # the optimizer may have moved them since
            else:
                measurement.copy_weights()
        if record.first_norm is not None:
            self._see_clipping_before(measurement, record, record.first_norm)
        clippings = self.run.sessions_of(ClippingSession)
        largest = [weight for weight in parameters if any(weight in clipping.cut_off for clipping in clippings)]
        if largest:
            measurement.clip.largest = step.unscaled(gradient_norms(largest, torch.inf).max())
        return measurement

    def _see_clipping_before(self, measurement: Measurement, record: OptimizerRecord, first_norm: Tensor) -> None:
        """Keeps the norms from before the module's clipping; else those about to be clipped, techniques included."""
        nothing = measurement.norms.new_zeros(())
        after_backward = torch.stack(
            [self.backward_norms.get(parameter, nothing) for parameter in measurement.parameters]
        )
        clipped = is_shorter(first_norm, total_norm(after_backward))
        if not self.run.module.automatic_optimization and not self.run.sessions_of(ClippingSession):
            measurement.clipped_norm = measurement.norm  # nobody clips later
        measurement.clipped_before, measurement.threshold_before = clipped, record.clip.threshold
        measurement.norms = torch.where(clipped, after_backward, measurement.norms)

    def _clip_gradients(
        self,
        clip: Callable[..., None],
        optimizer: Any,
        clip_val: float = 0.0,
        gradient_clip_algorithm: str = GradClipAlgorithmType.NORM,
    ) -> None:
        """Wraps Lightning's clipping: that of the Trainer, after all other hooks, or a module's own, before."""
        bare = getattr(optimizer, "optimizer", optimizer)  # a module has Lightning's wrapper in hand
        record = self._record(optimizer_index(self.run.trainer, bare))
        measurement = record.running
        if measurement is None:
            if clip_val > 0:
                record.clip = SeenClip(self._unscaled(bare, clip_val))
            clip(optimizer, clip_val, gradient_clip_algorithm)
            return
        if clip_val > 0:
            measurement.clip = SeenClip(clip_val)
            if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
                measurement.clip.largest = gradient_norms(measurement.parameters, torch.inf).max()
        clip(optimizer, clip_val, gradient_clip_algorithm)
        # Here, because some optimizers change gradients in their step.
        if not self.run.sessions_of(ClippingSession):
            scale = gradient_scale(self.run.trainer, bare)
            norm = total_norm(gradient_norms(measurement.parameters))
            measurement.clipped_norm = norm if scale is None else norm / scale

    def _unscaled(self, optimizer: Optimizer, clip_val: float) -> float | Tensor:
        """Returns a threshold without the scaler's scale, which is in the gradients that are clipped by hand."""
        parameters = trainable(optimizer)
        scale = scaler_scale(self.run.trainer, parameters[0].device) if parameters else None
        return clip_val if scale is None else clip_val / scale

    @override
    def after_step(self, step: Step) -> None:
        record = self._record(step.index)
        record.is_open = False
        measurement, record.running = record.running, None
        if len(step.clips) == 1:
            record.fraction = step.clips[0].fraction
        if measurement is None:
            return
        if len(step.clips) == 1:
            (clip,) = step.clips
            measurement.clip.threshold = clip.threshold
            measurement.clipped_norm = clip.clipped_norm if _same(clip.parameters, measurement.parameters) else None
            measurement.clipped = clip.clipped
        measurement.finish()
        record.counts.add(measurement, self.run.trainer.current_epoch)
        self._note_not_finite(record, measurement)
        record.latest = measurement.values(self.layers)

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        if outputs or not self.run.module.automatic_optimization:  # else it returned no loss, and there was no step
            for index in self.records:
                self._count_if_skipped(index)
        for record in self.records.values():
            record.close_batch()
        self.backward_norms = {}
        # Lightning's log costs more than the measurement, and drops what is logged at other steps.
        if logs_now(self.run.trainer):
            for index in sorted(self.records):
                self._log(index)

    def _is_measured(self, step: int) -> bool:
        every = self.technique.every_n_steps
        return logs_now(self.run.trainer) if every is None else step % every == 0

    def _measures_next(self) -> bool:
        optimizers = range(len(self.run.trainer.optimizers))
        return any(self._is_measured(self._record(index).counts.steps + 1) for index in optimizers)

    def _record(self, index: int) -> OptimizerRecord:
        if index not in self.records:
            self.records[index] = OptimizerRecord(StepCounts(self._device(index)))
        return self.records[index]

    def _device(self, index: int) -> torch.device:
        # Of any parameter: toggle_optimizer freezes all those of the other optimizers for a while.
        groups = self.run.trainer.optimizers[index].param_groups
        devices = (parameter.device for group in groups for parameter in group["params"])
        return next(devices, self.run.module.device)  # the optimizer of a module without one has no parameters

    def _count_if_skipped(self, index: int) -> None:
        """Counts a step that a gradient scaler skipped, which is known without a host sync."""
        record = self.records[index]
        if not record.is_open or scaler_scale(self.run.trainer, self._device(index)) is None:
            return
        record.is_open = False
        record.counts.skipped += 1
        optimizer = self.run.trainer.optimizers[index]
        parameters = [parameter for parameter in trainable(optimizer) if parameter.grad is not None]
        if parameters:
            self._note_not_finite(record, Measurement(parameters, gradient_norms(parameters)))
            record.latest = {}

    def _note_not_finite(self, record: OptimizerRecord, measurement: Measurement) -> None:
        names = [self.names.get(parameter, "a parameter outside the module") for parameter in measurement.parameters]
        record.not_finite.note(names, measurement.norms)

    def _name(self, record: OptimizerRecord) -> None:
        """Warns of parameters whose gradients weren't finite, once for the same ones."""
        names, record.not_finite = tuple(record.not_finite.names()), NotFinite()
        if names and names not in self.warned:
            self.warned.add(names)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            rank_zero_warn(f"The gradient isn't finite in {', '.join(names[:5])}{more}")

    def _log(self, index: int) -> None:
        trainer, record = self.run.trainer, self.records[index]
        counts = record.counts
        latest, record.latest = record.latest, {}
        values = latest | {
            "grad/nonfinite_steps": counts.nonfinite + counts.skipped,
            # The share of all steps where it is known, else of those that were measured.
            "grad/clip_fraction": counts.clip_fraction() if record.fraction is None else record.fraction,
        }
        # One transfer for everything.
        numbers = torch.stack([value.to(counts.measured.device, torch.float32) for value in values.values()]).tolist()
        shown = dict(zip(values, numbers, strict=True))
        if shown["grad/nonfinite_steps"]:
            self._name(record)
        if not math.isfinite(shown.get("grad/norm", 0.0)):
            shown = {"grad/nonfinite_steps": shown["grad/nonfinite_steps"]}
        suffix = optimizer_name(trainer, trainer.optimizers[index]) + self.technique.suffix(trainer)
        # A threshold that isn't known yet is infinite.
        finite = {tag + suffix: value for tag, value in shown.items() if math.isfinite(value)}
        # One value a step, however large the batch: Lightning can't count one that the step fetches itself.
        self.run.module.log_dict(finite, batch_size=1)

    # Checkpoints

    @override
    def kept(self) -> dict[str, Any]:
        records = self.records.items()
        return {
            "counts": {index: record.counts.state_dict() for index, record in records},
            "latest": {index: record.latest for index, record in records},
            "not_finite": {index: record.not_finite.names() for index, record in records},
        }

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        for index, counts in state["counts"].items():
            self.records[index] = OptimizerRecord(
                StepCounts.from_state(counts, self._device(index)),
                dict(state["latest"][index]),
                NotFinite(state["not_finite"][index]),
            )


def _with_gradient(step: Step) -> list[nn.Parameter]:
    return [parameter for parameter in step.parameters if parameter.grad is not None]


def _same(some: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
