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

from lightning_reg.attach.gradients import (
    gradient_norms,
    gradient_scale,
    optimizer_index,
    optimizer_name,
    parameters_of,
    scaler_scale,
)
from lightning_reg.attach.measurement import Clip, Measurement, StepCounts
from lightning_reg.attach.selection import select_layers
from lightning_reg.attach.technique import GradientTechnique, Position, callbacks_of, instance_suffix
from lightning_reg.attach.wrapping import around
from lightning_reg.callbacks.gradient.gradient_clipping import GradientClipping
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
        ``grad/nonfinite_steps``, counted since the fit began; ``grad/norm/<layer>``, before clipping;
        ``update/ratio`` and ``update/ratio/<layer>``. Of several optimizers with ``_optimizer_1`` and so on.

    Interacts with: manual optimization: there ``grad/norm`` is that after the last ``manual_backward``, before the
    module clips, and ``grad/norm_clipped`` contains penalties.

    Raises:
        SettingError: If a setting is out of its range, a glob matches nothing, or the optimizer is LBFGS.

    Reference:
        Update ratios: Andrej Karpathy, CS231n, Learning: Parameter Updates, 2015.

    >>> GradientMonitor(layers=("encoder.*",), update_ratio=True).max_layers
    32
    """

    position = Position.MEASUREMENT

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
        self.layers = tuple(layers)
        self.max_layers = max_layers
        self.update_ratio = update_ratio
        self._counts: dict[int, StepCounts] = {}
        self._saved_counts: dict[str, dict[str, int]] = {}
        self._forget()

    def _forget(self) -> None:
        self._trainer: Trainer | None = None
        self._layers: dict[str, list[nn.Parameter]] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._clippings: list[GradientClipping] = []
        self._backward_norms: dict[nn.Parameter, Tensor] = {}
        self._clips: dict[int, Clip] = {}
        self._running: dict[int, Measurement | None] = {}
        self._latest: dict[int, Measurement] = {}
        self._not_finite: dict[int, tuple[list[nn.Parameter], Tensor]] = {}
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
            self._counts, self._saved_counts = {}, {}

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        self._suffix = instance_suffix(trainer, self)
        self._names = {each.parameter: each.name for each in owned_parameters(pl_module)}
        self._clippings = [each for each in callbacks_of(trainer) if isinstance(each, GradientClipping)]
        if self.layers:
            self._layers, left_out = select_layers(pl_module, self.layers, self.max_layers)
            if left_out:
                rank_zero_info(f"GradientMonitor shows the {self.max_layers} largest layers, without {left_out} others")
        self.handles += [each.register_step_post_hook(self._after_step) for each in trainer.optimizers]
        # The Trainer's clipping, and a module's own self.clip_gradients(...), both end there.
        self.handles.append(around(trainer.precision_plugin, "clip_gradients", self._clip_gradients))

    @override
    def release(self) -> None:
        self._forget()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
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
            device = parameters_of(self._trainer.optimizers[index])[0].device if self._trainer else torch.device("cpu")
            saved = self._saved_counts.pop(str(index), None)
            self._counts[index] = StepCounts(device) if saved is None else StepCounts.from_state(saved, device)
        return self._counts[index]

    def _is_measured(self, trainer: Trainer, step: int) -> bool:
        if self.every_n_steps is not None:
            return step % self.every_n_steps == 0
        measured: bool = trainer._logger_connector.should_update_logs
        return measured

    def _measures_next(self, trainer: Trainer) -> bool:
        optimizers = range(len(trainer.optimizers))
        return any(self._is_measured(trainer, self._counts_of(index).steps + 1) for index in optimizers)

    def _begin(self, trainer: Trainer, optimizer: Optimizer, parameters: list[nn.Parameter]) -> Measurement:
        scale = gradient_scale(trainer, optimizer)
        norms = gradient_norms(parameters)
        for clipping in self._clippings:  # they come next, and needn't compute the norms again
            clipping.known_norms = parameters, norms
        measurement = Measurement(parameters, norms if scale is None else norms / scale)
        if all(each in self._backward_norms for each in parameters):
            measurement.norms = torch.stack([self._backward_norms[each] for each in parameters])
        measurement.clip = self._clips.pop(optimizer_index(trainer, optimizer), Clip())
        if any(each.algorithm == "value" for each in self._clippings):
            largest = gradient_norms(parameters, torch.inf).max()
            measurement.clip.largest = largest if scale is None else largest / scale
        if self.update_ratio:
            measurement.copy_weights()
        return measurement

    def _clip_gradients(
        self,
        clip: Callable[..., None],
        optimizer: Any,
        clip_val: float = 0.0,
        gradient_clip_algorithm: str = GradClipAlgorithmType.NORM,
    ) -> None:
        """Runs around Lightning's clipping: that of the Trainer, after all other hooks, or a module's own, before."""
        if self._trainer is not None and clip_val > 0:
            self._note_clipping(self._trainer, optimizer, clip_val, gradient_clip_algorithm)
        clip(optimizer, clip_val, gradient_clip_algorithm)

    def _note_clipping(self, trainer: Trainer, optimizer: Any, clip_val: float, algorithm: str) -> None:
        bare = getattr(optimizer, "optimizer", optimizer)  # a module has Lightning's wrapper in hand
        index = optimizer_index(trainer, bare)
        measurement = self._running.get(index)
        parameters = [each for each in parameters_of(bare) if each.grad is not None]
        if not parameters or (measurement is None and not self._measures_next(trainer)):
            return
        # Who clips before the step, by hand, has a scaler's scale in the gradients.
        scale = scaler_scale(trainer, parameters[0].device) if measurement is None else None
        noted = Clip(clip_val if scale is None else clip_val / scale)
        if algorithm == GradClipAlgorithmType.VALUE:
            largest = gradient_norms(parameters, torch.inf).max()
            noted.largest = largest if scale is None else largest / scale
        if measurement is None:
            self._clips[index] = noted
        else:
            measurement.clip = noted

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Runs when the optimizer has stepped; not where a gradient scaler skips the step."""
        if self._trainer is None:
            return
        index = optimizer_index(self._trainer, optimizer)
        measurement = self._running.pop(index, None)
        if measurement is None:
            return
        reports = [each.reports[index] for each in self._clippings if index in each.reports]
        if len(reports) == 1:
            measurement.clip.threshold = reports[0].threshold
            measurement.finish(reports[0].clipped_norm_of(measurement.parameters), reports[0].clipped)
        else:
            measurement.finish(None, None)
        self._counts_of(index).add(measurement, self._trainer.current_epoch)
        self._note_not_finite(index, measurement)
        self._latest[index] = measurement

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if outputs or not pl_module.automatic_optimization:  # else it returned no loss, and there was no step
            for index in list(self._running):
                self._count_if_skipped(index)
        self._running.clear()
        self._backward_norms, self._clips = {}, {}
        # Lightning's log costs more than the measurement, and drops what is logged at other steps.
        if trainer._logger_connector.should_update_logs:
            for index in set(self._counts):
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
        """Notes, on the device, whose gradients hold an infinity or a NaN."""
        flags = ~measurement.norms.isfinite()
        known = self._not_finite.get(index)
        if known is not None and len(known[1]) == len(flags):
            flags = flags | known[1]
        self._not_finite[index] = measurement.parameters, flags

    def _name(self, index: int) -> None:
        """Says whose gradients weren't finite, once for the same parameters."""
        parameters, flags = self._not_finite.pop(index)
        names = tuple(self._names[each] for each, bad in zip(parameters, flags.tolist(), strict=True) if bad)
        if names and names not in self._warned:
            self._warned.add(names)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            rank_zero_warn(f"The gradient isn't finite in {', '.join(names[:5])}{more}")

    def _log(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        counts, measurement = self._counts_of(index), self._latest.pop(index, None)
        values: dict[str, Tensor | float | None] = {
            "grad/nonfinite_steps": counts.nonfinite + counts.skipped,
            "grad/clip_fraction": self._clip_fraction(index),
        }
        if measurement is not None:
            values |= measurement.values(self._layers)
        present = {tag: torch.as_tensor(value) for tag, value in values.items() if value is not None}
        # One transfer for everything.
        numbers = torch.stack([value.to(counts.measured.device, torch.float32) for value in present.values()]).tolist()
        shown = dict(zip(present, numbers, strict=True))
        if index in self._not_finite and shown["grad/nonfinite_steps"]:
            self._name(index)
        if not math.isfinite(shown.get("grad/norm", 0.0)):
            shown = {"grad/nonfinite_steps": shown["grad/nonfinite_steps"]}
        suffix = optimizer_name(trainer, trainer.optimizers[index]) + self._suffix
        pl_module.log_dict({tag + suffix: value for tag, value in shown.items()})

    def _clip_fraction(self, index: int) -> Tensor:
        """Returns the share of all steps where it is known, else of those that were measured."""
        known = self._clippings[0].clip_fraction(index) if len(self._clippings) == 1 else None
        return self._counts_of(index).clip_fraction() if known is None else known

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._saved_counts | {str(index): counts.state_dict() for index, counts in self._counts.items()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved_counts = dict(state_dict)
