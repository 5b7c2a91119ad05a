"""Gradient clipping by norm, value, unit, percentile or z-score."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.gradient.clipping_algorithms import (
    ALGORITHMS,
    AdaptiveClipping,
    Algorithm,
    ClipMemory,
    ValueClipping,
)
from lightning_reg.core.clipping import ClippingSession
from lightning_reg.core.facts import Log, Place, Position
from lightning_reg.core.gradients import refuse_complex, refuse_sharded
from lightning_reg.core.lightning import is_overridden
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_never_zero
from lightning_reg.core.selection import Selection, as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError, check_choice

__all__ = ["GradientClipping"]


class GradientClipping(Technique):
    """Shortens gradients that are too long, before every optimizer step.

    What it does: ``"norm"`` and ``"value"`` are torch's ``clip_grad_norm_`` and ``clip_grad_value_``. ``"adaptive"``
    (AGC) bounds the gradient of every unit by a share of the norm of its weights. ``"percentile"`` (AutoClip) uses a
    percentile of the norms so far as the threshold, ``"zscore"`` (ZClip) shortens gradients whose norm is far above its
    running mean. It comes after penalties and noise, on unscaled gradients, fused optimizers included, and shares the
    norms that ``GradientMonitor`` measures.

    When to use: ``"norm"`` for recurrent networks and transformers; ``"adaptive"`` for networks without normalization;
    ``"percentile"`` and ``"zscore"`` where no threshold is known, or it changes. When not: beside another clipping.

    Cost: reads gradients once and writes them, on a CPU only where they are clipped; ``"adaptive"`` reads weights, too.
    State: N norms for ``"percentile"``, three numbers for ``"zscore"``. Nothing is moved to the host.

    Deviates from the papers: AutoClip's history is that of the last ``history`` norms; AGC leaves out normalization
    layers and all biases, which mostly begin at 0, where a bound of λ · eps would hardly let them learn; the paper's
    variant is ``exclude_norm_and_bias=False``.

    Args:
        algorithm: One of ``"norm"``, ``"value"``, ``"adaptive"``, ``"percentile"``, ``"zscore"``.
        max_norm: For ``"norm"``: largest total norm, positive, or infinity, which clips nothing; 1 where None.
        norm_type: For ``"norm"``: order of the norm, at least 1; 2 where None.
        max_value: For ``"value"``: largest absolute value of an entry, positive or infinity; 0.5 where None. Complex
            weights have to be excluded: torch refuses them, too.
        clip_factor: For ``"adaptive"``: share λ of the weights' norm, positive or infinity; 0.01 where None.
        eps: For ``"adaptive"``: lower bound of the weights' norm, positive; 1e-3 where None.
        exclude_head: For ``"adaptive"``: whether the last ``nn.Linear`` is left out; True where None.
        percentile: For ``"percentile"``: percentile of the norms, in (0, 100]; 10 where None.
        history: For ``"percentile"``: number of norms that are kept, at least 1; 1000 where None.
        z_threshold: For ``"zscore"``: largest number of standard deviations above the mean that isn't clipped,
            positive or infinity; 2.5 where None.
        alpha: For ``"zscore"``: decay of the running mean and variance, in (0, 1); 0.97 where None.
        warmup_steps: For ``"zscore"``: number of first steps that measure without clipping, at least 2; 25 where None.
        include: Globs over names of parameters that are clipped, all together where a total norm is taken.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out; where None, only
            with ``"adaptive"``.
        schedule: Factor of the threshold over the course of training, never 0; constant where None.

    Raises:
        SettingError: If a setting is out of its range or belongs to another algorithm, a glob matches nothing, the
            Trainer, the module or another GradientClipping clips the same gradients, weights clipped by value are
            complex, or the optimizer is LBFGS.

    Reference:
        Norm: Razvan Pascanu, Tomas Mikolov, Yoshua Bengio, ICML 2013, arXiv:1211.5063. Adaptive: Andrew Brock et al.,
        ICML 2021, arXiv:2102.06171. Percentile: Prem Seetharaman et al., MLSP 2020, arXiv:2007.14469. Z-score: Abhay
        Kumar et al., 2025, arXiv:2504.02507.

    >>> GradientClipping(algorithm="norm", max_norm=0.5).max_norm
    0.5
    """

    place = Place.GRADIENT
    position = Position.CLIPPING
    usual_ranges = (Log("max_norm", 0.1, 10.0),)
    changes_gradients = True
    clips_gradients = True
    state_dict = Technique.saved_state
    load_state_dict = Technique.load_saved_state

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
        check_choice("algorithm", algorithm, list(ALGORITHMS))
        check_never_zero(schedule)
        super().__init__()
        given = {
            "max_norm": max_norm,
            "norm_type": norm_type,
            "max_value": max_value,
            "clip_factor": clip_factor,
            "eps": eps,
            "exclude_head": exclude_head,
            "percentile": percentile,
            "history": history,
            "z_threshold": z_threshold,
            "alpha": alpha,
            "warmup_steps": warmup_steps,
        }
        self.algorithm = algorithm
        self.clipping = _algorithm(algorithm, {name: value for name, value in given.items() if value is not None})
        self.max_norm, self.norm_type, self.max_value = max_norm, norm_type, max_value
        self.clip_factor, self.eps, self.exclude_head = clip_factor, eps, exclude_head
        self.percentile, self.history = percentile, history
        self.z_threshold, self.alpha, self.warmup_steps = z_threshold, alpha, warmup_steps
        for setting in fields(self.clipping):  # with its default where it wasn't given
            setattr(self, setting.name, getattr(self.clipping, setting.name))
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = algorithm == "adaptive" if exclude_norm_and_bias is None else exclude_norm_and_bias
        self.schedule = schedule

    @property
    def used_settings(self) -> tuple[str, ...]:
        """Names of the arguments that this algorithm uses."""
        own = (setting.name for setting in fields(self.clipping))
        return "algorithm", *own, "include", "exclude", "exclude_norm_and_bias", "schedule"

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(algorithm=self.algorithm, include=self.include, exclude=self.exclude)

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return GradientClippingSession(self, run)


def _algorithm(name: str, given: dict[str, Any]) -> Algorithm:
    """Returns the algorithm with its settings; raises for settings that it doesn't take."""
    taken = [setting.name for setting in fields(ALGORITHMS[name])]
    for setting, value in given.items():
        if setting not in taken:
            raise SettingError(
                f"{setting} must be left out with algorithm {name!r}, which takes {', '.join(taken)}, but is {value}"
            )
    return ALGORITHMS[name](**given)


@dataclass(eq=False)
class GradientClippingSession(ClippingSession[GradientClipping]):
    """One fit of gradient clipping, with a memory for each optimizer, by index."""

    selection: Selection = field(init=False)
    strength: ScheduledStrength = field(init=False)
    head: set[nn.Parameter] = field(default_factory=set)  # left out
    memories: dict[int, ClipMemory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        self._refuse_other_clipping()
        self.selection = Selection.by(technique, run.module)
        if isinstance(technique.clipping, AdaptiveClipping):
            self._spare_head()
            refuse_sharded(self.selection.names, "adaptive GradientClipping")
        if isinstance(technique.clipping, ValueClipping):
            refuse_complex(self.selection.names, "GradientClipping by value", "take algorithm 'norm', or exclude it")
        for other in run.sessions_of(GradientClippingSession):
            both = other.chosen(self.chosen(list(self.selection.names)))
            if both:
                raise SettingError(
                    "include must choose different parameters in two GradientClippings, but both clip "
                    f"{self.selection.names[both[0]]}"
                )
        if not run.module.automatic_optimization:
            run.around(run.trainer.precision_plugin, "clip_gradients", self._refuse_clipping_by_hand)
        self.strength = ScheduledStrength(technique.schedule, run.trainer)

    @property
    @override
    def cut_off(self) -> Collection[nn.Parameter]:
        return self.selection.names if isinstance(self.technique.clipping, ValueClipping) else ()

    def chosen(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Returns the parameters that are clipped."""
        return [parameter for parameter in self.selection.of(parameters) if parameter not in self.head]

    def _spare_head(self) -> None:
        if not self.technique.exclude_head:
            return
        linear = [module for module in self.run.module.modules() if _is_linear(module)]
        if not linear:
            rank_zero_warn(
                "GradientClipping leaves no head out, because there is no nn.Linear: set exclude_head=False, and let "
                "exclude name the head"
            )
        trained = [module for module in linear if module.weight.requires_grad]
        if trained:
            self.head = set(trained[-1].parameters())
            if not self.chosen(list(self.selection.names)):
                raise SettingError(
                    "exclude_head must be False, because nothing but the head is left to clip of "
                    + ", ".join(self.selection.names.values())
                )

    def _refuse_other_clipping(self) -> None:
        trainer, module = self.run.trainer, self.run.module
        if trainer.gradient_clip_val:
            raise SettingError(
                "gradient_clip_val must be left out of the Trainer with GradientClipping, else gradients would be "
                f"clipped in two places, but is {trainer.gradient_clip_val}"
            )
        if is_overridden(module, "configure_gradient_clipping") and module.automatic_optimization:
            self.run.around(module, "configure_gradient_clipping", self._refuse_clipping_of_the_module)

    def _refuse_clipping_by_hand(self, clip: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        raise SettingError(
            "clip_gradients must not be called in the training step with GradientClipping, else gradients would be "
            "clipped in two places"
        )

    def _refuse_clipping_of_the_module(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Lets a module read its gradients; raises if it writes into them or replaces them, which comes too late."""
        before = [(parameter.grad, _version(parameter.grad)) for parameter in self.selection.names]
        result = inner(*args, **kwargs)
        if any(
            parameter.grad is not gradient or _version(parameter.grad) != version
            for parameter, (gradient, version) in zip(self.selection.names, before, strict=True)
        ):
            raise SettingError(
                f"GradientClipping must be left out with {type(self.run.module).__name__}, whose "
                "configure_gradient_clipping changes gradients itself, after they were clipped; clip there as well, or "
                "change them in on_after_backward"
            )
        return result

    @override
    def kept(self) -> dict[str, Any]:
        return {str(index): vars(memory) for index, memory in self.memories.items()}

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        self.memories = {
            int(index): ClipMemory.loaded(memory, self.technique.clipping.remembered, torch.device("cpu"))
            for index, memory in state.items()
        }

    def _memory(self, step: Step, like: Tensor) -> ClipMemory:
        memory = self.memories.get(step.index)
        if memory is None:
            memory = ClipMemory.empty(self.technique.clipping.remembered, like)
        self.memories[step.index] = memory = memory.to(like.device)
        return memory

    @override
    def before_step(self, step: Step) -> None:
        technique, trainer = self.technique, self.run.trainer
        factor = self.strength.now(trainer)
        if step.logs:
            self.strength.log(self.run.module, f"gradient_clipping{technique.suffix(trainer)}")
        parameters = [parameter for parameter in self.chosen(step.parameters) if parameter.grad is not None]
        if not parameters:
            return
        memory = self._memory(step, parameters[0])
        clip = technique.clipping.clip_(step, parameters, self.selection, memory, factor)
        if clip.clipped is not None:
            memory.count_step(trainer.current_epoch, clip.clipped, clip.norm)
            clip = replace(clip, fraction=memory.clipped / memory.steps.clamp(min=1))
        step.clips.append(clip)


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):  # scripted or traced, and of another class since
        return bool(module.original_name == "Linear")
    return isinstance(module, nn.Linear)


def _version(gradient: Tensor | None) -> int:
    return 0 if gradient is None else gradient._version
