"""L2-SP: a penalty toward the weights that training started from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.gradient.weight_penalty import PenaltySession, WeightPenalty
from lightning_reg.core.facts import Log
from lightning_reg.core.gradients import local, to_shard, whole
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.functional.gradient.penalties import add_l2_sp_gradient_, l2_sp_penalty
from lightning_reg.settings import SettingError, check_range

__all__ = ["L2SPPenalty"]


class L2SPPenalty(WeightPenalty):
    """Pulls weights toward those that training started from: λ/2 Σ(w − w⁰)² joins the loss.

    What it does: adds λ(w − w⁰) to the gradients before every optimizer step, without a graph. The starting point w⁰
    is the value of the weights before the first batch; after a resume, before that of the first fit.

    When to use: for fine-tuning a pretrained network on little data. When not: for randomly initialized layers; exclude
    a new head, and give it an ``L2Penalty`` of its own.

    Cost: reads weights, starting point and gradients and writes gradients once per optimizer step. State: a copy of the
    penalized weights, in memory and in every checkpoint.

    Args:
        weight: Strength λ, at least 0; 1e-3 to 1e-1 is usual.
        include: Globs over names of parameters that are penalized.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/l2_sp``, its value, and ``penalty/l2_sp_share``, its share of loss plus penalty, at the steps the
        trainer logs.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, the optimizer is LBFGS, or a
            checkpoint's starting point is that of other weights.

    Reference:
        Xuhong Li, Yves Grandvalet, Franck Davoine: Explicit Inductive Bias for Transfer Learning with Convolutional
        Networks, ICML 2018, arXiv:1802.01483.

    >>> L2SPPenalty(weight=0.01, exclude=("head.*",)).weight
    0.01
    """

    tag = "l2_sp"
    usual_ranges = (Log("weight", 1e-3, 1e-1),)
    state_dict = Technique.saved_state
    load_state_dict = Technique.load_saved_state

    def __init__(
        self,
        *,
        weight: float,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("weight", weight, low=0)
        super().__init__(
            include=include,
            exclude=exclude,
            exclude_norm_and_bias=exclude_norm_and_bias,
            schedule=schedule,
        )
        self.weight = weight

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(weight=self.weight, include=self.include, exclude=self.exclude)

    @property
    @override
    def adds_gradient(self) -> bool:
        return self.weight > 0

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return L2SPSession(self, run)


@dataclass(eq=False)
class L2SPSession(PenaltySession):
    """One fit, with the starting point of each parameter by name."""

    technique: L2SPPenalty
    starts: dict[str, Tensor] = kept(default_factory=dict)

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        for parameter, name in self.selection.names.items() if self.starts else ():
            if name not in self.starts or self.starts[name].shape != parameter.shape:
                raise SettingError(
                    f"ckpt_path must hold the starting point of {name}, which L2SPPenalty pulls toward, in the shape "
                    f"{tuple(parameter.shape)}; start a new fit from the pretrained weights instead"
                )

    @override
    def batch_starts(self, batch_idx: int) -> None:
        # Not earlier: strategies that shard weights restore a checkpoint after the fit has started, and a module may
        # load pretrained weights in on_train_start.
        if not self.starts:
            if self.run.trainer.global_step > 0:
                rank_zero_warn(
                    f"The checkpoint holds no starting point of an L2SPPenalty with weight {self.technique.weight} and "
                    f"include {list(self.technique.include)}; weights are pulled toward those of the checkpoint"
                )
            self.starts = {name: chosen.detach().clone() for chosen, name in self.selection.names.items()}

    def _starts_of(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Returns the starting points, each on the device of its parameter and sharded like it."""
        found = []
        for parameter in parameters:
            name = self.selection.names[parameter]
            if name not in self.starts or self.starts[name].shape != parameter.shape:  # of a layer that came later
                self.starts[name] = parameter.detach().clone()
            start = self.starts[name]
            if start.device != parameter.device or type(start) is not type(parameter.detach()):
                start = self.starts[name] = to_shard(start.to(parameter.dtype), parameter)
            found.append(start)
        return found

    @override
    def value(self, parameters: list[nn.Parameter], weights: list[Tensor]) -> Tensor:
        starts = [whole(start) for start in self._starts_of(parameters)]
        return l2_sp_penalty(weights, starts, self.technique.weight)

    @override
    def add_gradient_(
        self, parameters: list[nn.Parameter], weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor
    ) -> None:
        starts = [local(start) for start in self._starts_of(parameters)]
        add_l2_sp_gradient_(gradients, weights, starts, self.technique.weight * factor)
