"""Steps by the gradient of the worst weights nearby (SAM, ASAM)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.gradient.second_pass import SecondPass
from lightning_reg.core.facts import Chart, Place, Position
from lightning_reg.core.gradients import dense_gradient, gradient_norms, local, refuse_sharded
from lightning_reg.core.lightning import callbacks_of, flattens_parameters, scaler_scale
from lightning_reg.core.schedules import warn_if_never
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run, Step
from lightning_reg.core.technique import Technique
from lightning_reg.functional.gradient.sharpness import climb_, climbing_factor, gradients_of_climb, scale_to_weights_
from lightning_reg.functional.norms import total_norm
from lightning_reg.optim import owned_parameters
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = ["SharpnessAwareMinimization"]


class SharpnessAwareMinimization(Technique):
    """Steps by the gradient that the loss has at the worst weights nearby: SAM, and ASAM where ``adaptive``.

    What it does: before the optimizer's step it moves the weights w by a step of length ρ along the gradient of the
    whole accumulation window, runs the window's batches once more there, restores the weights bit for bit, and leaves
    the gradient of the second pass. Mixing of batches and dropout masks are the same in both passes, and masks of
    gradients in ``on_after_backward`` apply in both. All else counts once: statistics, metrics, logs, teachers, queues,
    counters and lists of the module. Penalties, noise and clipping come afterwards, and so apply once.

    When to use: for networks that memorize, where there is time for longer training; it still helps on top of data
    augmentation and weight decay. When not: where every step counts, or with less than a few thousand steps.
    ``interval`` and ``fraction`` make it cheaper.

    Cost: a second forward and backward pass at each of its steps, and passes over the weights like those of clipping.
    Memory of one copy of the weights that have gradients, of the window's batches twice (those above 1 MiB once, unless
    the step changes them), and of what a step changes beside weights. With ``fraction`` the second pass shrinks with
    it. No state.

    Interacts with: several processes, which climb along the mean of their gradients, not each along its own. A gradient
    scaler: where the second pass overflows, the first pass's gradients are used. Penalties on activations and on
    confidence are part of the loss, and so of both passes. Your own hooks on modules run in both. What can't be
    restored (an iterator that the module holds, a file that it writes to from within a tuple) is warned of by name.

    With ``fraction`` below 1 the second pass draws its dropout masks and mixing partners for its own samples, and
    BatchNorm normalizes by their statistics.

    Deviates from the papers: ASAM's |w| + η is used for all parameters, biases included. ``fraction`` takes the samples
    with the largest loss in the first pass, whereas ESAM takes those whose loss rises most under the perturbation,
    which costs one more forward pass; ESAM's random subsets of weights aren't implemented either.

    Args:
        rho: Length ρ of the perturbation, at least 0; 0 makes all steps plain. 0.05 to 0.2 for SAM, 0.5 to 2 for ASAM.
        adaptive: Whether to measure lengths relative to the weights (ASAM).
        eta: Term η, at least 0, that is added to the absolute value of a weight where ``adaptive``.
        interval: Number of optimizer steps from one SAM step to the next, at least 1; the steps between are plain.
        only: ``"norm"`` to perturb only the scales and shifts of normalization layers (SAM-ON), which needs a much
            larger ρ, such as 0.5 to 5; every weight where None. Takes a copy of the other gradients.
        friendly: Whether to perturb along the batch-specific part of the gradient (F-SAM): along g − m, where m is a
            moving average of gradients, rather than along g. Takes two copies of the gradients; the average is in
            checkpoints.
        momentum: Decay of m where ``friendly``, in [0, 1).
        fraction: Share γ, in (0, 1], of a batch's N samples in the second pass: the ⌈γN⌉ with the largest loss in the
            first; 0.5 makes a step about a fourth cheaper. Needs a loss function of torch's with a value per sample,
            and a batch of tensors with one row per sample. A loss that is a sum over samples rather than their mean is
            scaled up to all of them.

    Logs:
        ``sharpness/loss_rise``, by how much the loss is higher up there, at the steps the trainer logs.

    Raises:
        SettingError: If a setting is out of its range; at the fit's start with no normalization layer where ``only`` is
            ``"norm"``, sharded weights where ``friendly``, manual optimization, LBFGS, a second such callback, a
            training step that fetches its own batches, or weights that are flattened (FSDP1, DeepSpeed); at the first
            batch where ``fraction`` is below 1, if its tensors don't have one row per sample or no loss with one value
            per sample is seen; at the first second pass then, if the loss compares the batch's samples with each other,
            or adds a sum over samples to a mean.

    Reference:
        Pierre Foret, Ariel Kleiner, Hossein Mobahi, Behnam Neyshabur: Sharpness-Aware Minimization for Efficiently
        Improving Generalization, ICLR 2021, arXiv:2010.01412. Jungmin Kwon, Jeongseop Kim, Hyunseo Park, In Kwon Choi:
        ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks, ICML 2021,
        arXiv:2102.11600. Maximilian Mueller, Tiffany Vlaar, David Rolnick, Matthias Hein: Normalization Layers Are All
        That Sharpness-Aware Minimization Needs, NeurIPS 2023, arXiv:2306.04226. Tao Li, Pan Zhou, Zhengbao He, Xinwen
        Cheng, Xiaolin Huang: Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv:2403.12350. Jiawei Du, Hanshu Yan,
        Jiashi Feng, Joey Tianyi Zhou, Liangli Zhen, Rick Siow Mong Goh, Vincent Y. F. Tan: Efficient Sharpness-Aware
        Minimization for Improved Training of Neural Networks, ICLR 2022, arXiv:2110.03141.

    >>> SharpnessAwareMinimization(rho=0.05).interval
    1
    """

    place = Place.GRADIENT
    charts = (Chart("Gradients", "rise of the loss nearby", r"sharpness/loss_rise$"),)
    position = Position.SHARPNESS
    changes_gradients = True

    def __init__(
        self,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        interval: int = 1,
        only: Literal["norm"] | None = None,
        friendly: bool = False,
        momentum: float = 0.9,
        fraction: float = 1.0,
    ) -> None:
        check_range("rho", rho, low=0)
        check_range("eta", eta, low=0)
        check_count("interval", interval)
        check_range("momentum", momentum, low=0, high=1, high_open=True)
        check_range("fraction", fraction, low=0, high=1, low_open=True)
        if only is not None:
            check_choice("only", only, ["norm"])
        super().__init__()
        self.rho = rho
        self.adaptive = adaptive
        self.eta = eta
        self.interval = interval
        self.only = only
        self.friendly = friendly
        self.momentum = momentum
        self.fraction = fraction
        if friendly:  # else there is no state, which Lightning finds out by whether these are overridden
            self.state_dict = self.saved_state  # type: ignore[method-assign]
            self.load_state_dict = self.load_saved_state  # type: ignore[method-assign]

    @property
    def used_settings(self) -> tuple[str, ...]:
        """Names of the settings that have an effect, for tables."""
        further = {"eta": self.adaptive, "momentum": self.friendly}
        usual = ("rho", "adaptive", "interval", "only", "friendly", "fraction")
        return (*usual, *(name for name, used in further.items() if used))

    @override
    def new_session(self, run: Run) -> Session[Any]:
        self._check(run.trainer, run.module)
        second_pass = SecondPass(run, lambda: self.is_due(run.trainer), fraction=self.fraction)
        return _Climbing(self, run, second_pass)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the coming optimizer step is a SAM step."""
        return self.rho > 0 and (trainer.global_step + 1) % self.interval == 0

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(self).__name__
        if sum(isinstance(callback, SharpnessAwareMinimization) for callback in callbacks_of(trainer)) > 1:
            raise SettingError(f"callbacks must hold one {name}, because a second would undo what the first found")
        if not pl_module.automatic_optimization:
            raise SettingError(
                f"automatic_optimization must be True with {name}: under manual optimization it doesn't know what to "
                "run again before a step"
            )
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise SettingError(f"training_step must take a batch with {name}, not a dataloader_iter")
        if flattens_parameters(trainer):
            raise SettingError(
                f"strategy must be ModelParallelStrategy (FSDP2) or one that keeps parameters whole with {name}, but "
                f"{type(trainer.strategy).__name__} flattens them"
            )


@dataclass(eq=False)
class _Climbing(Session[SharpnessAwareMinimization]):
    """One fit of SAM."""

    second_pass: SecondPass
    # Allocated once: on a CPU, new memory has to be cleared.
    spare: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    perturbed: set[nn.Parameter] | None = None  # all where None
    names: dict[nn.Parameter, str] = field(default_factory=dict)
    means: dict[str, Tensor] = kept(default_factory=dict)  # moving averages of gradients, where friendly

    @override
    def train_starts(self) -> None:
        warn_if_never(self.technique, self.run.trainer, "step", self.technique.interval, "interval")

    @override
    def window_begins(self) -> None:
        self.second_pass.begin_window()

    def __post_init__(self) -> None:
        technique, module = self.technique, self.run.module
        if technique.only == "norm":
            owned = [entry for entry in owned_parameters(module) if entry.is_norm]
            self.perturbed = {entry.parameter for entry in owned}
            if not self.perturbed:
                raise SettingError('only must be left out, but is "norm", and no normalization layer has weights')
        if technique.friendly:
            self.names = {parameter: name for name, parameter in module.named_parameters()}
            refuse_sharded(self.names, f"{type(technique).__name__}(friendly=True)", "use DDP")

    @override
    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        trained = [parameter for parameter in step.parameters if parameter.grad is not None]
        ways = self._ways(step, trained) if self.technique.friendly else {}
        parameters = trained if self.perturbed is None else [weight for weight in trained if weight in self.perturbed]
        if not self.technique.is_due(self.run.trainer) or not parameters or not self.second_pass.is_possible():
            return
        weights = [local(parameter) for parameter in parameters]
        before = [self._spare_of(parameter, weight) for parameter, weight in zip(parameters, weights, strict=True)]
        eta = self.technique.eta if self.technique.adaptive else None
        # Gradients that can't be recovered from the movement of the weights.
        beside = set(trained) if ways else set(trained).difference(parameters)
        first = {parameter: parameter.grad for parameter in beside}
        for parameter, way in ways.items():
            parameter.grad = way
        factor = self._climb(parameters, weights, before, eta)
        for parameter in trained:
            parameter.grad = None  # before the second pass, which needs as much memory
        try:
            with torch.enable_grad():
                rise = self.second_pass.run()
            # Up there other weights may take part, such as those of another expert.
            found = [parameter for parameter in step.parameters if parameter.grad is not None]
            _unscale(step, found)
            climbed = [] if ways else parameters
            _fall_back(found, climbed, first, lambda: gradients_of_climb(before, weights, factor, eta))
        finally:
            torch._foreach_copy_(weights, before)
        if rise is not None and step.logs:
            step.log("sharpness/loss_rise", rise)

    def _ways(self, step: Step, trained: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        """Updates the moving average of gradients, and returns the gradients minus that average."""
        ways: dict[nn.Parameter, Tensor] = {}
        for place, parameter in enumerate(trained):
            gradient = step.unscaled(dense_gradient(parameter))
            # An optimizer may have parameters that the module doesn't register.
            name = self.names.get(parameter, f"optimizer {step.index}, parameter {place}")
            mean = self.means.get(name)
            mean = torch.zeros_like(gradient) if mean is None else mean.to(gradient)
            moved = torch.lerp(gradient, mean, self.technique.momentum)
            # A step that a gradient scaler skips mustn't spoil the average.
            self.means[name] = torch.where(gradient.isfinite(), moved, mean)
            ways[parameter] = gradient - self.means[name]
        return ways

    def _climb(
        self, parameters: list[nn.Parameter], weights: list[Tensor], before: list[Tensor], eta: float | None
    ) -> Tensor:
        """Moves the weights; returns the factor on the gradients."""
        gradients = [local(dense_gradient(parameter)) for parameter in parameters]
        if eta is not None:
            scale_to_weights_(gradients, weights, eta)
        factor = climbing_factor(total_norm(gradient_norms(parameters)), self.technique.rho)
        # Where gradients aren't finite, or aren't any more beside their weights, the factor is 0: there is no climb.
        if factor.device.type != "cpu" or factor == 0:  # asking a GPU would hold up the step
            for gradient in gradients:
                gradient.nan_to_num_(0.0, 0.0, 0.0)
        climb_(weights, gradients, before, factor, eta)
        return factor

    def _spare_of(self, parameter: nn.Parameter, weight: Tensor) -> Tensor:
        spare = self.spare.get(parameter)
        if spare is None or spare.shape != weight.shape or spare.device != weight.device or spare.dtype != weight.dtype:
            spare = self.spare[parameter] = torch.empty_like(weight)
        return spare


def _unscale(step: Step, parameters: list[nn.Parameter]) -> None:
    """Divides gradients by a gradient scaler's scale, unless the optimizer does that."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or step.scale is not None:
        return
    scale = scaler_scale(step.run.trainer, gradients[0].device)
    if scale is not None:
        for gradient in gradients:
            gradient.div_(scale)


def _fall_back(
    found: list[nn.Parameter],
    climbed: list[nn.Parameter],
    first: Mapping[nn.Parameter, Tensor | None],
    of_climb: Callable[[], list[Tensor]],
) -> None:
    """Replaces the second pass's gradients by the first's if they aren't finite, and by 0 where there was none.

    What only the first pass reached is then given its gradient, too.

    Args:
        found: Parameters that have a gradient of the second pass.
        climbed: Parameters whose first gradients are recovered from their movement.
        first: First gradients of the others.
        of_climb: Function that returns the first gradients of ``climbed``.
    """
    if not found:
        return
    is_finite = total_norm(gradient_norms(found)).isfinite()
    if is_finite.device.type == "cpu" and is_finite:  # asking a GPU would hold up the step
        return
    gradients = {**first, **dict(zip(climbed, of_climb() if climbed else (), strict=True))}
    for parameter in found:
        before = gradients.get(parameter)
        if parameter.grad is not None and not parameter.grad.is_sparse:
            gradient = local(parameter.grad)
            instead = torch.zeros_like(gradient) if before is None else local(before)
            # Without a climb both passes have the same gradients, which can't be recovered from a movement.
            gradient.copy_(torch.where(is_finite | ~instead.isfinite(), gradient, instead))
    # There is nothing to write to where only the first pass came, and in sparse gradients, which may have other rows.
    reached = {**gradients, **dict.fromkeys(found)}
    others = [weight for weight in reached if weight.grad is None or weight.grad.is_sparse]
    if others and not is_finite:
        for parameter in others:
            _give(parameter, gradients.get(parameter))


def _give(parameter: nn.Parameter, before: Tensor | None) -> None:
    """Replaces a parameter's gradient by that of the first pass, unless the latter couldn't be recovered."""
    if before is None:
        parameter.grad = None
    elif local(before).isfinite().all():
        dense = torch.empty_like(parameter)
        local(dense).copy_(local(before))
        parameter.grad = dense if parameter.grad is None else dense.to_sparse(parameter.grad.sparse_dim())
