"""Weights that are set back toward a slower copy of themselves every few steps."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.attach.averaging import CHECKPOINT_KEY
from lightning_reg.attach.gradients import local, optimizer_index, parameters_of, to_shard, whole
from lightning_reg.attach.held_weights import tensors_of
from lightning_reg.attach.technique import Position, StepTechnique, instance_number
from lightning_reg.core.facts import Place
from lightning_reg.functional.averaging import lookahead_
from lightning_reg.settings import check_count, check_range

__all__ = ["Lookahead"]


class Lookahead(StepTechnique):
    """Lets any optimizer run ahead for ``k`` steps, and goes only a part of the way.

    What it does: after every ``k``-th step of an optimizer, its slow weights move by ``alpha`` toward the weights, and
    the weights are set to where the slow ones are then. The optimizer's own state, momentum included, is left alone.

    When to use: around an optimizer that is noisy or has a high learning rate; ``k`` and ``alpha`` need little tuning.
    When not: beside an average of weights it brings little more.

    Cost: one copy of the trained weights, in memory and in checkpoints; every ``k``-th step reads and writes them.

    Interacts with: constraints and proximal penalties, which come first, so that on convex sets they hold for the slow
    weights too; averages of weights, which come afterwards. Steps of each optimizer are counted for itself.

    As in most implementations the weights that are evaluated and saved are the fast ones, which have run ahead by up to
    ``k - 1`` steps; the paper evaluates with the slow ones, which they are after every ``k``-th step.

    Args:
        k: Steps from one synchronization to the next, at least 1.
        alpha: Share of the way that the slow weights go, in (0, 1]; 1 changes nothing.

    Raises:
        SettingError: If a setting is out of its range.

    Reference:
        Michael R. Zhang, James Lucas, Geoffrey Hinton, Jimmy Ba: Lookahead Optimizer: k steps forward, 1 step back,
        NeurIPS 2019, arXiv:1907.08610.

    >>> Lookahead(k=5, alpha=0.5).k
    5
    """

    place = Place.WEIGHTS
    position = Position.LOOKAHEAD

    def __init__(self, *, k: int = 5, alpha: float = 0.5) -> None:
        check_count("k", k)
        check_range("alpha", alpha, low=0, high=1, low_open=True)
        super().__init__()
        self.k = k
        self.alpha = alpha
        self._steps: dict[int, int] = {}
        self._slow: dict[int, dict[str, Tensor]] = {}
        self._pairs: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._indices: dict[Optimizer, int] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._steps, self._slow = {}, {}

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names = {id(each): name for name, each in tensors_of(pl_module).items()}

    @override
    def release(self) -> None:
        # Slow weights stay, for checkpoints that are saved after the fit.
        self._pairs, self._indices, self._names = {}, {}, {}

    @override
    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        index = optimizer_index(trainer, optimizer)
        fast = parameters_of(optimizer)
        if index in self._pairs and len(fast) == len(self._pairs[index][0]):
            return
        # Before its first step: a checkpoint may have been loaded after the fit started.
        slow = self._slow.setdefault(index, {})
        self._steps.setdefault(index, 0)
        self._indices[optimizer] = index
        for each in fast:
            held = slow.get(self._name(each))
            slow[self._name(each)] = each.detach().clone() if held is None else held.to(each.device)
        self._pairs[index] = ([local(slow[self._name(each)]) for each in fast], [local(each) for each in fast])

    @override
    def after_step(self, optimizer: Optimizer) -> None:
        index = self._indices.get(optimizer)
        if index is None:  # stepped behind Lightning's back
            return
        self._steps[index] += 1
        if self._steps[index] % self.k == 0 and self._pairs[index][0]:
            lookahead_(*self._pairs[index], self.alpha)

    def _name(self, parameter: nn.Parameter) -> str:
        return self._names.get(id(parameter), "")

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        slow = {index: {name: whole(each).cpu() for name, each in held.items()} for index, held in self._slow.items()}
        checkpoint.setdefault(CHECKPOINT_KEY, {})[self._key(trainer)] = {"steps": dict(self._steps), "slow": slow}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY, {}).get(self._key(trainer))
        if saved is None or trainer.state.fn != TrainerFn.FITTING:
            return
        tensors = tensors_of(pl_module)
        self._steps = dict(saved["steps"])
        self._slow = {
            index: {name: to_shard(each, tensors[name]) for name, each in held.items() if name in tensors}
            for index, held in saved["slow"].items()
        }

    def _key(self, trainer: Trainer) -> str:
        return f"{type(self).__name__}_{instance_number(trainer, self) + 1}"
