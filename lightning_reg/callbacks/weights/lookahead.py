"""Weights that are set back toward a slower copy of themselves every few steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.averaging import CHECKPOINT_KEY
from lightning_reg.callbacks.weights.averages.registered import tensors_of
from lightning_reg.core.facts import Place, Position
from lightning_reg.core.gradients import local, to_shard, whole
from lightning_reg.core.lightning import instance_number
from lightning_reg.core.schedules import warn_if_never
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run, Step, unannounced
from lightning_reg.core.technique import Technique
from lightning_reg.functional.weights.averaging import lookahead_
from lightning_reg.settings import check_count, check_range

__all__ = ["Lookahead"]


class Lookahead(Technique):
    """Lets any optimizer run ahead for ``k`` steps, and goes only a part of the way.

    What it does: after every ``k``-th step of an optimizer, its slow weights move by ``alpha`` toward the weights, and
    the weights are set to where the slow ones are then. The optimizer's own state, momentum included, is left alone.

    When to use: around an optimizer that is noisy or has a high learning rate; ``k`` and ``alpha`` need little tuning.
    When not: beside an average of weights it brings little more.

    Cost: one copy of the trained weights, in memory and in checkpoints; every ``k``-th step reads and writes them.

    Interacts with: constraints and proximal penalties, which come first, so that on convex sets they hold for the slow
    weights too; averages of weights, which come afterwards. The steps of each optimizer are counted separately. A
    frozen layer is left alone, with its slow weights, until it is unfrozen.

    As in most implementations the weights that are evaluated and saved are the fast ones, which have run ahead by up to
    ``k - 1`` steps; the paper evaluates with the slow ones, which they equal after every ``k``-th step.

    Args:
        k: Steps from one synchronization to the next, at least 1.
        alpha: Share of the way that the slow weights go, in [0, 1]; 1 changes nothing, 0 undoes all steps, to the bit.

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
        check_range("alpha", alpha, low=0, high=1)
        super().__init__()
        self.k = k
        self.alpha = alpha

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return LookaheadSession(self, run)

    # Lightning matches callbacks' states by their settings; this survives a change of settings.

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = self.kept
        if not state:  # a finder saves before the fit has begun
            return
        slow = {
            index: {name: whole(weight).cpu() for name, weight in held.items()} for index, held in state["slow"].items()
        }
        checkpoint.setdefault(CHECKPOINT_KEY, {})[self._key(trainer)] = {"steps": dict(state["steps"]), "slow": slow}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY, {}).get(self._key(trainer))
        if saved is not None and trainer.state.fn == TrainerFn.FITTING:
            self.load_saved_state(saved)

    def _key(self, trainer: Trainer) -> str:
        return f"{type(self).__name__}_{instance_number(trainer, self) + 1}"


@dataclass(eq=False)
class LookaheadSession(Session[Lookahead]):
    """One fit, with slow weights by parameter rather than by name, because layers may be renamed."""

    steps: dict[int, int] = kept(default_factory=dict)  # by index of the optimizer
    slow: dict[int, dict[nn.Parameter, Tensor]] = field(default_factory=dict)  # likewise
    loaded: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # from a checkpoint, not yet met, by name
    known: dict[int, list[nn.Parameter]] = field(default_factory=dict)  # those that an optimizer stepped last

    @override
    def kept(self) -> dict[str, Any]:
        names = self._names()
        slow = {index: dict(held) for index, held in self.loaded.items()}
        for index, held in self.slow.items():
            slow.setdefault(index, {}).update(
                {names[parameter]: weight for parameter, weight in held.items() if parameter in names}
            )
        return {**super().kept(), "slow": slow}

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        super().load({name: value for name, value in state.items() if name != "slow"})
        self.steps = dict(self.steps)
        self.loaded = {index: dict(held) for index, held in state["slow"].items()}
        self.slow, self.known = {}, {}

    @override
    def train_starts(self) -> None:
        warn_if_never(self.technique, self.run.trainer, "step", self.technique.k, "k")

    @override
    def before_step(self, step: Step) -> None:
        # Before the first step: a checkpoint may have been loaded after the fit started.
        known = self.known.get(step.index, [])
        if len(known) == len(step.parameters) and all(map(_are_same, known, step.parameters)):
            return
        self.known[step.index] = step.parameters
        self.steps.setdefault(step.index, 0)
        slow, loaded = self.slow.setdefault(step.index, {}), self.loaded.get(step.index, {})
        names = self._names() if loaded else {}
        for parameter in step.parameters:
            if parameter not in slow:
                slow[parameter] = _slow_weight(loaded.pop(names[parameter], None) if loaded else None, parameter)

    @override
    def after_step(self, step: Step) -> None:
        if step.optimizer not in self.run.trainer.optimizers:
            return  # a step that Lightning doesn't know of
        if step.index not in self.known:
            raise unannounced(self.technique, self.run.module)
        self.steps[step.index] += 1
        if self.steps[step.index] % self.technique.k == 0:
            self._synchronize(self.slow[step.index], self.known[step.index])

    @torch.no_grad()
    def _synchronize(self, slow: dict[nn.Parameter, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        for parameter in parameters:
            if slow[parameter].shape != parameter.shape:  # another weight, by weight.data
                slow[parameter] = parameter.detach().clone()
        pairs = [local(slow[parameter]) for parameter in parameters], [local(parameter) for parameter in parameters]
        if self.technique.alpha == 1:
            torch._foreach_copy_(*pairs)  # whatever they are, the weights stay as they are
        elif parameters:
            lookahead_(*pairs, self.technique.alpha)

    def _names(self) -> dict[nn.Parameter, str]:
        """Names of the module's parameters, and of those that it hasn't registered by their place in an optimizer."""
        tensors = tensors_of(self.run.module)
        names = {tensor: name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
        for index, optimizer in enumerate(self.run.trainer.optimizers):
            for place, parameter in enumerate(_all_parameters(optimizer)):
                names.setdefault(parameter, f"optimizer {index}, parameter {place}")
        return names


def _are_same(one: nn.Parameter, other: nn.Parameter) -> bool:
    return one is other


def _slow_weight(loaded: Tensor | None, parameter: nn.Parameter) -> Tensor:
    if loaded is None or loaded.shape != parameter.shape:
        return parameter.detach().clone()
    return to_shard(loaded.to(parameter.dtype), parameter)


def _all_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
