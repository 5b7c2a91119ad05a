"""Switches of schedule-free optimizers between their training and evaluation modes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.averaging import CHECKPOINT_KEY
from lightning_reg.callbacks.weights.averages.recomputation import recomputed_statistics
from lightning_reg.callbacks.weights.averages.registered import (
    fingerprint,
    is_sharded,
    reshard,
    state_names,
    tensors_of,
)
from lightning_reg.callbacks.weights.averages.remembered_inputs import RememberedInputs, batch_norms
from lightning_reg.core.copies.isolation import copy_module
from lightning_reg.core.facts import Place, Position
from lightning_reg.core.gradients import local, to_shard
from lightning_reg.core.lightning import callbacks_of, flattens_parameters, instance_number, twins
from lightning_reg.core.session import Session, plain
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError, check_choice

__all__ = ["ScheduleFreeMode"]

Statistics = Literal["recompute", "copy"]


class ScheduleFreeMode(Technique):
    """Puts a schedule-free optimizer into evaluation mode wherever its weights are looked at, and back.

    What it does: a schedule-free optimizer computes gradients at weights y between its iterates z and their average x,
    and x is what should be evaluated and saved. Before each validation, at the end of the fit and while a checkpoint is
    written, the optimizer's ``eval()`` puts x into the module, and BatchNorm's statistics are recomputed for it;
    afterwards ``train()`` puts y back, which is then restored to the bit. So validating and saving change nothing in
    training, ``test`` and ``predict`` use x, and checkpoints load anywhere; y lies beside x in them, so that a fit can
    be resumed anywhere.

    When to use: with every optimizer of the package ``schedulefree``, or another with methods ``train()`` and
    ``eval()``, which raises or silently evaluates the wrong weights without it. When not: with other optimizers, which
    it refuses.

    Cost: one copy of the weights while they are evaluated, and in checkpoints. Where the network has BatchNorm, its
    inputs in the epoch so far, up to 512 MiB of the latest, are kept in the host's memory, and a copy of the module is
    held while they are passed through it; ``buffers="copy"`` saves that.

    Interacts with: ``ExponentialMovingAverage``, ``StochasticWeightAverage`` and other averages, which it refuses,
    because x is an average already. Constraints and ``Lookahead`` act on y and know nothing of x. Weights that the
    module hasn't registered are swapped with the optimizer's rounding.

    Deviates from the paper: nothing; statistics of BatchNorm are recomputed as its authors advise.

    Args:
        buffers: BatchNorm's statistics: ``"recompute"`` for x from the inputs of the epoch so far, or ``"copy"`` those
            of y.

    Raises:
        SettingError: If a setting is out of its range, no optimizer is schedule-free, something else averages weights,
            or the strategy flattens parameters.

    Reference:
        Aaron Defazio, Xingyu Alice Yang, Harsh Mehta, Konstantin Mishchenko, Ahmed Khaled, Ashok Cutkosky: The Road
        Less Scheduled, NeurIPS 2024, arXiv:2405.15682.

    >>> ScheduleFreeMode().buffers
    'recompute'
    """

    place = Place.WEIGHTS
    position = Position.AVERAGING
    averages_weights = True

    def __init__(self, *, buffers: Statistics = "recompute") -> None:
        check_choice("buffers", buffers, get_args(Statistics))
        super().__init__()
        self.buffers: Statistics = buffers

    @property
    def is_in(self) -> bool:
        """Whether the module has the averaged weights at this moment."""
        return isinstance(self.session, ScheduleFreeSession) and self.session.is_in

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return ScheduleFreeSession(self, run)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        name = type(self).__name__
        for callback in callbacks_of(trainer):
            averages = getattr(callback, "averages_weights", False) and callback is not self
            if averages or isinstance(callback, twins(StochasticWeightAveraging, WeightAveraging)):
                raise SettingError(
                    f"callbacks must not have {type(callback).__name__} with {name}, whose optimizer averages the "
                    "weights itself"
                )
        if flattens_parameters(trainer):
            raise SettingError(
                f"strategy must keep parameters apart with {name}, but is {type(trainer.strategy).__name__}; use "
                "DDPStrategy or ModelParallelStrategy"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not any(map(_is_schedule_free, trainer.optimizers)):
            kinds = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "none"
            raise SettingError(
                f"optimizer must be schedule-free with {type(self).__name__}, with methods train() and eval() as those "
                f"of the package schedulefree have, but is {kinds}"
            )
        super().on_fit_start(trainer, pl_module)

    # Lightning matches callbacks' states by their settings; this survives a change of settings.

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = self.kept
        if not state:  # a finder saves before the fit has begun
            return
        checkpoint.setdefault(CHECKPOINT_KEY, {})[self._key(trainer)] = plain(state)
        if isinstance(self.session, ScheduleFreeSession) and "state_dict" in checkpoint:
            self.session.save_into(checkpoint["state_dict"])

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY, {}).get(self._key(trainer))
        if saved is not None and trainer.state.fn == TrainerFn.FITTING:
            self.load_saved_state(saved)

    def _key(self, trainer: Trainer) -> str:
        return f"{type(self).__name__}_{instance_number(trainer, self) + 1}"


@dataclass(eq=False)
class ScheduleFreeSession(Session[ScheduleFreeMode]):
    """One fit: the trained weights while the module has their average."""

    trained: dict[str, Tensor] = field(default_factory=dict)  # and BatchNorm's buffers, while the module has others
    loaded: dict[str, Tensor] = field(default_factory=dict)  # of a checkpoint, not yet in the module
    statistics: dict[str, Tensor] = field(default_factory=dict)  # of the average as it is now
    inputs: RememberedInputs = field(init=False)
    evaluated: Tensor = field(default_factory=lambda: torch.zeros(0))  # norms of the weights that are validated
    is_in: bool = False  # whether the module has the average
    is_stale: bool = True  # whether there were batches since the statistics were computed
    has_started: bool = False
    is_final: bool = False  # whether training has ended, and the module keeps the average

    def __post_init__(self) -> None:
        self.inputs = RememberedInputs(self.run)
        self.run.around(self.run.trainer, "save_checkpoint", self._save)
        self.run.around(self.run.trainer.fit_loop.epoch_loop.val_loop, "run", self._validate)

    # The state

    @override
    def kept(self) -> dict[str, Any]:
        trained = self.trained if self.is_in else self.loaded or self._now()
        return {"trained": dict(trained), "statistics": dict(self.statistics), "inputs": self.inputs.kept()}

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        self.loaded = dict(state["trained"])
        self.statistics = dict(state["statistics"])
        self.inputs.load(state["inputs"])
        self.trained, self.is_in, self.is_stale = {}, False, False

    # When it acts

    @override
    def train_starts(self) -> None:
        self.has_started = True
        self._train()
        if self.technique.buffers == "recompute":
            self.inputs.watch()

    @override
    def batch_starts(self, batch_idx: int) -> None:
        self._take_in()
        self.inputs.batch_starts(wanted=self.technique.buffers == "recompute")

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        self.inputs.batch_ends()
        self.is_stale = True

    @override
    def validation_ends(self) -> None:
        if self.is_in and torch.equal(fingerprint(self.run.module), self.evaluated):  # else others have to leave first
            self.leave()

    @override
    def train_ends(self) -> None:
        self.enter()
        self.is_final = True

    @override
    def ends(self, exception: BaseException | None) -> None:
        # Whatever fails after training has ended, such as a test, leaves the averaged weights.
        if exception is not None and not self.is_final:
            self.leave()

    def _validate(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        """Wraps the fit's validation with all its hooks, in which others may swap weights."""
        self.enter()
        self.evaluated = fingerprint(self.run.module)
        result = inner(*args, **kwargs)
        self.leave()
        return result

    def _save(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        """Wraps the trainer's method that writes a checkpoint, optimizers included."""
        was_in = self.is_in
        self.enter()
        try:
            return inner(*args, **kwargs)
        finally:
            if not was_in:
                self.leave()

    # What it does

    def enter(self) -> None:
        """Puts the average into the module."""
        if self.is_in:
            return
        self._take_in()
        self.trained = {name: tensor.detach().clone() for name, tensor in self._now().items()}
        with torch.inference_mode(False):  # whose tensors couldn't be trained with afterwards
            for optimizer in self._optimizers():
                optimizer.eval()  # type: ignore[attr-defined]
        self.is_in = True
        reshard(self.run.module)
        if self.technique.buffers == "recompute" and not self.run.trainer.sanity_checking:
            self._recompute()

    def leave(self) -> None:
        """Puts the trained weights back, to the bit."""
        if not self.is_in:
            return
        self.is_in = False
        self.loaded, self.trained = self.trained, {}
        self._train()

    def save_into(self, state_dict: dict[str, Any]) -> None:
        """Replaces the trained weights in a state dict by the average."""
        if self.is_in:
            return
        names = state_names(self.run.module)
        self.enter()
        tensors = tensors_of(self.run.module)
        for name in self.trained:
            for key in names[name]:
                if key in state_dict:
                    state_dict[key] = tensors[name].detach().clone()
        self.leave()

    def _take_in(self) -> None:
        """Goes on from what a finder has restored in the middle of the fit: our state first, the optimizers' later."""
        if self.loaded and self.has_started:
            self._train()

    def _train(self) -> None:
        """Puts the optimizers into training mode, and loads the weights that are waiting for it, if there are any."""
        loaded, self.loaded = self.loaded, {}
        tensors = tensors_of(self.run.module)
        with torch.inference_mode(False), torch.no_grad():
            for optimizer in self._optimizers():
                optimizer.train()  # type: ignore[attr-defined]
            for name, value in loaded.items():
                if name in tensors and tensors[name].shape == value.shape:
                    is_of_file = isinstance(tensors[name], DTensor) and not isinstance(value, DTensor)
                    kept = to_shard(value, tensors[name]) if is_of_file else value
                    local(tensors[name]).copy_(local(kept))
        reshard(self.run.module)

    def _recompute(self) -> None:
        module, trainer = self.run.module, self.run.trainer
        if not batch_norms(module):
            return
        if self.is_stale:
            name = type(self.technique).__name__
            averaged = module if is_sharded(module) else copy_module(trainer, module, name)
            self.statistics = recomputed_statistics(trainer, averaged, self.inputs)
            self.is_stale = False
        tensors = tensors_of(module)
        with torch.inference_mode(False), torch.no_grad():
            for name, value in self.statistics.items():
                tensors[name].copy_(value)

    def _optimizers(self) -> list[Optimizer]:
        return [optimizer for optimizer in self.run.trainer.optimizers if _is_schedule_free(optimizer)]

    def _now(self) -> dict[str, Tensor]:
        """Returns the tensors that are swapped: weights that the optimizers step, and buffers of BatchNorm."""
        module = self.run.module
        groups = [group for optimizer in self._optimizers() for group in optimizer.param_groups]
        held = {id(weight) for group in groups for weight in group["params"]}
        held |= {id(buffer) for norm in batch_norms(module).values() for buffer in norm.buffers(recurse=False)}
        return {name: tensor for name, tensor in tensors_of(module).items() if id(tensor) in held}


def _is_schedule_free(optimizer: Optimizer) -> bool:
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
