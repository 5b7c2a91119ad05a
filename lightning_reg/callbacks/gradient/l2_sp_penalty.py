"""L2-SP: a penalty toward the weights that training started from."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.attach.gradients import local, to_shard, whole
from lightning_reg.attach.schedules import StrengthSchedule
from lightning_reg.attach.weight_penalty import WeightPenalty, local_pairs
from lightning_reg.functional.penalties import add_l2_sp_gradient_, l2_sp_penalty
from lightning_reg.settings import SettingError, check_range

__all__ = ["L2SPPenalty"]


class L2SPPenalty(WeightPenalty):
    """Pulls weights toward those that training started from: λ/2 Σ(w − w⁰)² joins the loss.

    What it does: adds λ(w − w⁰) to the gradients before every optimizer step, without a graph. The starting point w⁰
    is what the weights are when the fit starts; after a resume, what they were when the first one did.

    When to use: for fine-tuning a pretrained network on little data. When not: for layers that start from random
    numbers; exclude a new head, and give it an ``L2Penalty`` of its own.

    Cost: reads weights, starting point and gradients and writes gradients once per optimizer step. State: a copy of the
    penalised weights, in memory and in every checkpoint.

    Args:
        weight: Strength λ, at least 0; 1e-3 to 1e-1 is usual.
        include: Globs over parameter names that are penalised.
        exclude: Globs over parameter names that are not.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared.
        schedule: What the strength is multiplied by as training goes on; constant where None.

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
        self._saved: dict[str, Tensor] | None = None
        self._is_loaded = False
        self._starts: dict[nn.Parameter, Tensor] = {}

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(weight=self.weight, include=self.include, exclude=self.exclude)

    @property
    @override
    def adds_gradient(self) -> bool:
        return self.weight > 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # before a checkpoint's state is loaded; each fit has a starting point of its own
            self._saved = None
            self._is_loaded = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Not at fit start: strategies that shard weights restore a checkpoint after that.
        if self._saved is None:
            if trainer.ckpt_path is not None and not self._is_loaded:
                rank_zero_warn(
                    f"The checkpoint holds no starting point of an L2SPPenalty with weight {self.weight} and include "
                    f"{list(self.include)}; weights are pulled toward those of the checkpoint"
                )
            self._starts = {each: each.detach().clone() for each in self.names}
            return
        self._check_saved(self._saved)
        self._starts = {each: to_shard(self._saved[name].to(each.dtype), each) for each, name in self.names.items()}
        self._saved = None

    def _check_saved(self, saved: dict[str, Tensor]) -> None:
        for each, name in self.names.items():
            if name not in saved or saved[name].shape != each.shape:
                raise SettingError(
                    f"ckpt_path must hold the starting point of {name}, which L2SPPenalty pulls toward, in the shape "
                    f"{tuple(each.shape)}; start a new fit from the pretrained weights instead"
                )

    @override
    def release(self) -> None:
        self._starts = {}
        super().release()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = self._named_starts()  # for a checkpoint that is saved after the fit

    def _named_starts(self) -> dict[str, Tensor]:
        return {self.names[each]: whole(start).cpu() for each, start in self._starts.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"starts": self._named_starts() if self._starts else self._saved or {}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_loaded = True
        self._saved = state_dict["starts"] or None  # a checkpoint from before the first step has none

    @override
    def value(self, weights: list[Tensor], parameters: list[nn.Parameter]) -> Tensor:
        return l2_sp_penalty(weights, [whole(self._starts[each]) for each in parameters], self.weight)

    @override
    def add_gradient_(self, parameters: list[nn.Parameter], factor: float | Tensor) -> None:
        starts = [local(self._starts[each]) for each in parameters]
        add_l2_sp_gradient_(*local_pairs(parameters), starts, self.weight * factor)
