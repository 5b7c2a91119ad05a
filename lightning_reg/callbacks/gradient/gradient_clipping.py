"""Gradient clipping by norm, value, unit, percentile or z-score."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.attach.clipping import ClipMemory, ClipReport, KnownNorms
from lightning_reg.attach.gradients import (
    gradient_norms,
    gradient_scale,
    gradient_values,
    local,
    optimizer_index,
    parameters_of,
    refuse_sharded,
)
from lightning_reg.attach.schedules import ScheduledStrength, StrengthSchedule, check_never_zero
from lightning_reg.attach.selection import as_patterns, select_parameters, unit_dims
from lightning_reg.attach.technique import GradientTechnique, Position, callbacks_of, instance_suffix, logs_now
from lightning_reg.core.wrapping import around
from lightning_reg.functional.clip_thresholds import percentile_threshold, zscore_thresholds_
from lightning_reg.functional.gradients import (
    clip_adaptively_,
    clip_by_value_,
    scale_,
    shrinking_factor,
    total_norm,
)
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = ["GradientClipping"]

# What each algorithm takes, with its defaults.
_SETTINGS: dict[str, dict[str, float]] = {
    "norm": {"max_norm": 1.0, "norm_type": 2.0},
    "value": {"max_value": 0.5},
    "adaptive": {"clip_factor": 0.01, "eps": 1e-3, "exclude_head": True},
    "percentile": {"percentile": 10.0, "history": 1000},
    "zscore": {"z_threshold": 2.5, "alpha": 0.97, "warmup_steps": 25},
}


class GradientClipping(GradientTechnique):
    """Shortens gradients that are too long, before every optimizer step.

    What it does: ``"norm"`` and ``"value"`` are torch's ``clip_grad_norm_`` and ``clip_grad_value_``. ``"adaptive"``
    (AGC) bounds the gradient of every unit by a share of the length of its weights. ``"percentile"`` (AutoClip) takes a
    percentile of the norms so far for the threshold, ``"zscore"`` (ZClip) shortens norms that stick out of their
    running mean. It comes after penalties and noise, on unscaled gradients, fused optimizers included, and shares the
    norms that ``GradientMonitor`` measures.

    When to use: ``"norm"`` for recurrent networks and transformers; ``"adaptive"`` for networks without normalization;
    ``"percentile"`` and ``"zscore"`` where no threshold is known, or it changes. When not: beside another clipping.

    Cost: reads gradients once and writes them, on a CPU only where they are clipped; ``"adaptive"`` reads weights, too.
    State: N norms for ``"percentile"``, three numbers for ``"zscore"``. Nothing is moved to the host.

    Deviates from the papers: AutoClip's history is that of the last ``history`` norms; AGC leaves out norms and all
    biases.

    Args:
        algorithm: One of ``"norm"``, ``"value"``, ``"adaptive"``, ``"percentile"``, ``"zscore"``.
        max_norm: For ``"norm"``: longest total norm, positive; 1 where None.
        norm_type: For ``"norm"``: order of the norm, at least 1; 2 where None.
        max_value: For ``"value"``: largest absolute entry, positive; 0.5 where None.
        clip_factor: For ``"adaptive"``: share λ of the weights' length, positive; 0.01 where None.
        eps: For ``"adaptive"``: length that weights count at least with, positive; 1e-3 where None.
        exclude_head: For ``"adaptive"``: whether the last linear layer is spared; True where None.
        percentile: For ``"percentile"``: in (0, 100]; 10 where None.
        history: For ``"percentile"``: how many norms are remembered; 1000 where None.
        z_threshold: For ``"zscore"``: standard deviations beyond which a norm sticks out, positive; 2.5 where None.
        alpha: For ``"zscore"``: decay of the running mean and variance, in (0, 1); 0.97 where None.
        warmup_steps: For ``"zscore"``: steps that only measure, at least 2; 25 where None.
        include: Globs over parameter names that are clipped, together where a total norm is taken.
        exclude: Globs over parameter names that are not.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared; where None, with
            ``"adaptive"`` alone.
        schedule: What the threshold is multiplied by as training goes on, never 0; constant where None.

    Raises:
        SettingError: If a setting is out of its range or of another algorithm, a glob matches nothing, the Trainer, the
            module or another GradientClipping clips the same gradients, or the optimizer is LBFGS.

    Reference:
        Norm: Razvan Pascanu, Tomas Mikolov, Yoshua Bengio, ICML 2013, arXiv:1211.5063. Adaptive: Andrew Brock et al.,
        ICML 2021, arXiv:2102.06171. Percentile: Prem Seetharaman et al., MLSP 2020, arXiv:2007.14469. Z-score: Abhay
        Kumar et al., 2025, arXiv:2504.02507.

    >>> GradientClipping(algorithm="norm", max_norm=0.5).max_norm
    0.5
    """

    position = Position.CLIPPING

    def __init__(
        self,
        *,
        algorithm: Literal["norm", "value", "adaptive", "percentile", "zscore"] = "norm",
        max_norm: float | None = None,
        norm_type: float | None = None,
        max_value: float | None = None,
        clip_factor: float | None = None,
        eps: float | None = None,
        exclude_head: bool | None = None,
        percentile: float | None = None,
        history: int | None = None,
        z_threshold: float | None = None,
        alpha: float | None = None,
        warmup_steps: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool | None = None,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_choice("algorithm", algorithm, list(_SETTINGS))
        check_never_zero(schedule)
        super().__init__()
        self.algorithm = algorithm
        self.max_norm = self._setting("max_norm", max_norm)
        self.norm_type = self._setting("norm_type", norm_type)
        self.max_value = self._setting("max_value", max_value)
        self.clip_factor = self._setting("clip_factor", clip_factor)
        self.eps = self._setting("eps", eps)
        self.exclude_head = bool(self._setting("exclude_head", exclude_head))
        self.percentile = self._setting("percentile", percentile)
        self.history: int = self._setting("history", history)
        self.z_threshold = self._setting("z_threshold", z_threshold)
        self.alpha = self._setting("alpha", alpha)
        self.warmup_steps: int = self._setting("warmup_steps", warmup_steps)
        self._check_ranges()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = algorithm == "adaptive" if exclude_norm_and_bias is None else exclude_norm_and_bias
        self.schedule = schedule
        self.chosen: dict[nn.Parameter, str] = {}
        self.reports: dict[int, ClipReport] = {}
        self.known_norms: KnownNorms | None = None
        self._dims: dict[nn.Parameter, int] = {}
        self._memories: dict[int, ClipMemory] = {}
        self._strength = ScheduledStrength()
        self._suffix = ""

    @property
    def used_settings(self) -> tuple[str, ...]:
        """Arguments that mean something with this algorithm."""
        return "algorithm", *_SETTINGS[self.algorithm], "include", "exclude", "exclude_norm_and_bias", "schedule"

    def _setting(self, name: str, value: float | None) -> Any:
        """Returns the value or its default, and refuses what the algorithm doesn't take."""
        if value is not None and name not in _SETTINGS[self.algorithm]:
            taken = ", ".join(_SETTINGS[self.algorithm])
            raise SettingError(
                f"{name} must be left out with algorithm {self.algorithm!r}, which takes {taken}, but is {value}"
            )
        defaults = {key: default for settings in _SETTINGS.values() for key, default in settings.items()}
        return defaults[name] if value is None else value

    def _check_ranges(self) -> None:
        for name in ("max_norm", "max_value", "clip_factor", "eps", "z_threshold"):
            check_range(name, getattr(self, name), low=0, low_open=True)
        if self.norm_type != torch.inf:
            check_range("norm_type", self.norm_type, low=1)
        check_range("percentile", self.percentile, low=0, high=100, low_open=True)
        check_range("alpha", self.alpha, low=0, high=1, low_open=True, high_open=True)
        check_count("history", self.history)
        check_count("warmup_steps", self.warmup_steps, low=2)

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(algorithm=self.algorithm, include=self.include, exclude=self.exclude)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # before a checkpoint's state is loaded; each fit has a history of its own
            self._memories = {}

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse_other_clipping(trainer, pl_module)
        selected = select_parameters(
            pl_module,
            include=self.include,
            exclude=self.exclude,
            exclude_norm_and_bias=self.exclude_norm_and_bias,
        )
        if self.algorithm == "adaptive" and self.exclude_head:
            selected = _without_head(selected, pl_module)
        self.chosen = {parameter: name for name, parameter in selected.items()}
        if self.algorithm == "adaptive":
            refuse_sharded(self.chosen, "adaptive GradientClipping")
        self._refuse_overlap(trainer)
        self._dims = unit_dims(pl_module) if self.algorithm == "adaptive" else {}
        for index, memory in self._memories.items():
            memory.to(next(each.device for each in parameters_of(trainer.optimizers[index])))
        if not pl_module.automatic_optimization:
            self.handles.append(around(trainer.precision_plugin, "clip_gradients", self._refuse_clipping_by_hand))
        self._strength = ScheduledStrength(self.schedule, trainer)
        self._suffix = instance_suffix(trainer, self)

    @override
    def release(self) -> None:
        self.chosen, self._dims, self.reports, self.known_norms = {}, {}, {}, None

    @override
    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        factor = self._strength.now(trainer)
        if logs_now(trainer):
            self._strength.log(pl_module, f"gradient_clipping{self._suffix}")
        parameters = [each for each in parameters_of(optimizer) if each in self.chosen and each.grad is not None]
        known, self.known_norms = self.known_norms, None
        index = optimizer_index(trainer, optimizer)
        if not parameters:
            self.reports.pop(index, None)
            return
        memory = self._memory(index, parameters[0])
        scale = gradient_scale(trainer, optimizer)
        if self.algorithm == "value":
            report = self._clip_by_value(parameters, factor, scale)
        elif self.algorithm == "adaptive":
            report = self._clip_adaptively(parameters, factor, scale)
        else:
            if known is not None and self.norm_type == 2 and known.still_of(parameters):
                norms = known.norms
            else:
                norms = gradient_norms(parameters, self.norm_type)
            norm = total_norm(norms, self.norm_type)
            report = self._clip_norm(parameters, factor, norm if scale is None else norm / scale, memory)
        if report.clipped is not None:
            memory.count_step(trainer.current_epoch, report.clipped, report.norm)
        self.reports[index] = report

    def _clip_by_value(self, parameters: list[nn.Parameter], factor: float, scale: Tensor | None) -> ClipReport:
        bound = self.max_value * factor
        # Under a scaler an infinity has to stay one: the optimizer skips its step by it.
        clip_by_value_(
            [local(gradient_values(each)) for each in parameters],
            bound if scale is None else bound * scale,
            keep_nonfinite=scale is not None,
        )
        return ClipReport(parameters, bound)

    def _clip_adaptively(self, parameters: list[nn.Parameter], factor: float, scale: Tensor | None) -> ClipReport:
        gradients = [gradient_values(each).movedim(self._dims.get(each, 0), 0) for each in parameters]
        units = [_with_gradient(each).movedim(self._dims.get(each, 0), 0) for each in parameters]
        share = self.clip_factor * factor
        clipped = clip_adaptively_(gradients, units, share, eps=self.eps, scale=1.0 if scale is None else scale)
        return ClipReport(parameters, share, clipped)

    def _clip_norm(self, parameters: list[nn.Parameter], factor: float, norm: Tensor, memory: ClipMemory) -> ClipReport:
        threshold, target = self._threshold(factor, norm, memory)
        shrunk = shrinking_factor(norm, target)
        # A norm that is exactly the threshold stays as it is; torch's clipping shrinks it by the 1e-6.
        shrunk = shrunk if self.algorithm == "norm" else torch.where(norm > threshold, shrunk, 1.0)
        scale_([local(gradient_values(each)) for each in parameters], shrunk)
        # Others measure the Euclidean norm.
        return ClipReport(parameters, threshold, shrunk < 1, norm, norm * shrunk if self.norm_type == 2 else None)

    def _threshold(self, factor: float, norm: Tensor, memory: ClipMemory) -> tuple[float | Tensor, float | Tensor]:
        """Returns beyond which norm gradients are shortened, and to which."""
        if self.algorithm == "norm":
            return self.max_norm * factor, self.max_norm * factor
        if self.algorithm == "percentile":
            memory.remember(norm)
            threshold = percentile_threshold(memory.norms, self.percentile) * factor
            return threshold, threshold
        return zscore_thresholds_(
            memory.moments,
            norm,
            z_threshold=self.z_threshold * factor,
            alpha=self.alpha,
            warmup_steps=self.warmup_steps,
        )

    def clip_fraction(self, index: int) -> Tensor | None:
        """Returns in which share of this epoch's steps gradients were clipped; None where that isn't counted.

        Args:
            index: Of the optimizer.
        """
        memory = self._memories.get(index)
        if memory is None or self.algorithm == "value":
            return None
        return memory.clipped / memory.steps.clamp(min=1)

    def _memory(self, index: int, parameter: nn.Parameter) -> ClipMemory:
        size = self.history if self.algorithm == "percentile" else 1
        memory = self._memories.get(index)
        if memory is None:
            memory = ClipMemory(size, parameter.device, torch.promote_types(parameter.dtype, torch.float32))
            self._memories[index] = memory
        return memory

    @override
    def state_dict(self) -> dict[str, Any]:
        return {str(index): memory.state_dict() for index, memory in self._memories.items()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        size = self.history if self.algorithm == "percentile" else 1
        self._memories = {int(index): ClipMemory.from_state(state).resized(size) for index, state in state_dict.items()}

    def _refuse_clipping_by_hand(self, clip: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        raise SettingError(
            "clip_gradients must not be called in the training step with GradientClipping, else gradients would be "
            "clipped in two places"
        )

    def _refuse_other_clipping(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.gradient_clip_val:
            raise SettingError(
                "gradient_clip_val must be left out of the Trainer with GradientClipping, else gradients would be "
                f"clipped in two places, but is {trainer.gradient_clip_val}"
            )
        if is_overridden("configure_gradient_clipping", pl_module) and pl_module.automatic_optimization:
            raise SettingError(
                f"GradientClipping must be left out with {type(pl_module).__name__}, whose configure_gradient_clipping "
                "clips gradients itself"
            )

    def _refuse_overlap(self, trainer: Trainer) -> None:
        for other in callbacks_of(trainer):
            if isinstance(other, GradientClipping) and other is not self:
                both = [name for parameter, name in self.chosen.items() if parameter in other.chosen]
                if both:
                    raise SettingError(
                        f"include must choose different parameters in two GradientClippings, but both clip {both[0]}"
                    )


def _with_gradient(parameter: nn.Parameter) -> Tensor:
    """Returns the weights that the entries of a gradient belong to: the rows that a sparse one holds."""
    gradient, weights = parameter.grad, parameter.detach()
    return weights[gradient.indices()[0]] if gradient is not None and gradient.is_sparse else weights


def _without_head(selected: dict[str, nn.Parameter], pl_module: LightningModule) -> dict[str, nn.Parameter]:
    """Returns the parameters but those of the last linear layer, if there is one."""
    linear = [each for each in pl_module.modules() if isinstance(each, nn.Linear) and each.weight.requires_grad]
    head = set(linear[-1].parameters()) if linear else set()
    rest = {name: parameter for name, parameter in selected.items() if parameter not in head}
    if not rest:
        raise SettingError(
            f"exclude_head must be False, because nothing but the head is left to clip of {', '.join(selected)}"
        )
    return rest
