"""One fit of an average of weights: what it holds, when it is updated, and when it is evaluated."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.averaging import WeightAverage
from lightning_reg.callbacks.weights.averages.evaluation import report_validation
from lightning_reg.callbacks.weights.averages.held_weights import HeldWeights
from lightning_reg.callbacks.weights.averages.recomputation import recomputed_statistics
from lightning_reg.callbacks.weights.averages.registered import (
    Registered,
    children_in,
    fingerprint,
    is_sharded,
    norm_statistics,
    registered_in,
    spectral_vectors,
    tensors_of,
)
from lightning_reg.callbacks.weights.averages.remembered_inputs import RememberedInputs, batch_norms
from lightning_reg.core.copies.isolation import copy_module
from lightning_reg.core.gradients import local
from lightning_reg.core.lightning import pruning_callbacks, step_number
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Step

__all__ = ["AverageSession", "Averaged"]


@dataclass(frozen=True)
class Averaged:
    """The average of a fit.

    Attributes:
        updates: Number of updates of the average.
        is_in: Whether the module has the average.
        weights: The average, by name of the parameter or buffer.
    """

    updates: int
    is_in: bool
    weights: Mapping[str, Tensor]


@dataclass(eq=False)
class AverageSession(Session[WeightAverage]):
    """One fit of an average, with what it holds and the inputs that it remembers."""

    updates: int = kept(default=0)
    is_recomputed: bool = kept(default=False)  # whether BatchNorm's statistics are those of the average as it is now
    held: HeldWeights = field(default_factory=HeldWeights)
    inputs: RememberedInputs = field(init=False)
    has_stepped: bool = False  # since a step was counted last
    watched: set[Optimizer] = field(default_factory=set)  # those whose next step is seen before it begins
    has_trained: bool = False  # whether any step was seen in this fit
    is_told: bool = False  # whether a warning has said already that there will be no average
    is_told_of_written: bool = False  # whether a warning has said that validation has written to the average
    is_final: bool = False  # whether training has ended, and the module keeps the average
    saved_at: tuple[int, int] = (-1, -1)  # updates and steps when a checkpoint's statistics were recomputed
    places: list[Registered] = field(default_factory=list)  # of all parameters
    children: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=list)  # now, and when it read
    trainable: list[bool] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of what is averaged
    averaged: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))  # the averages, the weights
    evaluated: Tensor = field(default_factory=lambda: torch.zeros(0))  # norms of the weights that are validated
    has_shards: bool = False  # whether any of those is spread over processes

    def __post_init__(self) -> None:
        self.inputs = RememberedInputs(self.run)
        trainer = self.run.trainer
        self.run.around(trainer.fit_loop.epoch_loop.val_loop, "run", self._validate)
        self.run.around(trainer.strategy, "lightning_module_state_dict", self._state_dict)
        for callback in pruning_callbacks(trainer):
            self.run.around(callback, "on_validation_epoch_end", self._prune)
            self.run.around(callback, "on_save_checkpoint", self._save_pruned)

    @property
    def is_averaging(self) -> bool:
        """Whether the average is updated at this time of the fit."""
        raise NotImplementedError

    @property
    def has_begun(self) -> bool:
        """Whether what is trained from now on differs from the average, even if it is frozen before the next update."""
        return self.updates > 0

    @property
    def counts_batches(self) -> bool:
        """Whether a batch counts as one step, however many there are in it."""
        return len(self.run.trainer.optimizers) > 1

    def is_due_after_step(self) -> bool:
        """Counts a step, and returns whether the average is updated after it."""
        raise NotImplementedError

    def is_due_after_batch(self) -> bool:
        """Whether the average is updated after a training batch that has ended, whatever has stepped in it."""
        return False

    def update_(self, averages: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Updates averages with weights, in place; not called the first time, when weights are copied instead."""
        raise NotImplementedError

    # The state

    @override
    def kept(self) -> dict[str, Any]:
        return {**super().kept(), "weights": self.held.kept(), "inputs": self.inputs.kept()}

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        super().load({name: value for name, value in state.items() if name not in ("weights", "inputs")})
        self.held.load(state["weights"], self.run.module)
        self.inputs.load(state["inputs"])
        self.places = []

    @override
    def result(self) -> Averaged:
        return Averaged(self.updates, self.held.is_in, self.held.average(self.run.module))

    # When it acts

    @override
    def train_starts(self) -> None:
        if self.technique.buffers == "recompute":
            self.inputs.watch()

    @override
    def batch_starts(self, batch_idx: int) -> None:
        self.inputs.batch_starts(wanted=self.is_averaging)

    @override
    def before_step(self, step: Step) -> None:
        # Before it is trained, what has been frozen has the value that all snapshots had: their mean, to the bit.
        if self.has_begun and self.run.trainer.training:
            if not self.places:
                self._read()
            if any(place.tensor.requires_grad and place.name not in self.held.values for place in self.places):
                if self._has_others:  # pruning has given a weight another name, and what is held has followed
                    self._read()
                self._begin()

    @override
    def after_step(self, step: Step) -> None:
        self.has_trained = True
        if not self.run.trainer.training:  # a step in validation, where the module may have the average
            return
        self.has_stepped = True
        if step.optimizer not in self.watched:
            self.watched.add(step.optimizer)
            self.run.until_end(step.optimizer.register_step_pre_hook(self._step_entered))

    def _step_entered(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.has_stepped:
            self.steps_again()

    def steps_again(self) -> None:
        """Runs before a further step in the same batch.

        By then all that acts on the weights after a step has acted, the user's code included.
        """
        if not self.counts_batches and self._counts_as_due():
            self.take()

    def _counts_as_due(self) -> bool:
        has_stepped, self.has_stepped = self.has_stepped, False
        return has_stepped and self.is_due_after_step()

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        self.inputs.batch_ends()
        is_due = self._counts_as_due()
        if self.is_due_after_batch() or is_due:
            self.take()

    @override
    def validation_ends(self) -> None:
        # What comes later in the list finds the trained weights, unless others have put in theirs and still have to
        # take them out.
        if self.held.is_in and self._is_as_evaluated():
            self.held.exchange(self.run.module)

    @override
    def train_ends(self) -> None:
        if self._gives:
            self.held.follow(tensors_of(self.run.module), is_final=True)
            self._put_in()
        self.is_final = True
        if not self.updates and self.has_trained and not self.is_told:
            self._warn_of_no_average()

    def _warn_of_no_average(self) -> None:
        technique, trainer = self.technique, self.run.trainer
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Trainer.__init__ elsewhere
            return
        settings = {name: getattr(technique, name) for name in technique.delays}
        steps = trainer.global_step if len(trainer.optimizers) == 1 else step_number(trainer) - 1
        given = ", ".join(f"{name} is {value}" for name, value in settings.items() if value is not None)
        rank_zero_warn(
            f"{type(technique).__name__} has had no effect: {f'{given}, but ' if given else ''}training ended at epoch "
            f"{trainer.current_epoch}, step {steps}"
        )

    @override
    def ends(self, exception: BaseException | None) -> None:
        # Whatever fails after training has ended, such as a test, leaves the averaged weights.
        if exception is not None and self.held.is_in and not self.is_final:
            self.held.exchange(self.run.module)

    # What it does

    def take(self) -> None:
        """Updates the average with the current weights."""
        if not self.places or self._has_others:
            self._read()
        trainable = [place.tensor.requires_grad for place in self.places]
        averages, tensors = self.averaged
        if trainable != self.trainable or any(map(_differ_in_shape, averages, tensors)):
            self._begin()
            averages, tensors = self.averaged
        with torch.no_grad():
            if self.updates and averages:
                self.update_(averages, list(map(local, tensors)) if self.has_shards else tensors)
        self.updates += 1
        self.is_recomputed = False

    @property
    def _has_others(self) -> bool:
        """Whether the module has other parameters or submodules than when they were read."""
        return any(place.is_stale for place in self.places) or any(now != read for now, read in self.children)

    def _read(self) -> None:
        """Reads which parameters the module has."""
        self.places = [entry for entry in registered_in(self.run.module) if isinstance(entry.tensor, nn.Parameter)]
        self.children = children_in(self.run.module)
        self.trainable = []

    def _begin(self) -> None:
        """Copies the tensors that aren't held yet."""
        module = self.run.module
        tensors = tensors_of(module)
        self.held.follow(tensors)
        self.trainable = [place.tensor.requires_grad for place in self.places]
        # Snapshots of what has been frozen since go on counting, as constant ones.
        averaged = [
            place.name
            for place, is_trainable in zip(self.places, self.trainable, strict=True)
            if is_trainable or place.name in self.held.values
        ]
        if self.technique.buffers == "average":
            averaged += [name for name in norm_statistics(module) if name in tensors]
        with torch.no_grad():
            for name in [*averaged, *self._computed(tensors)]:
                if name in tensors and name not in self.held.values:
                    self.held.add(name, tensors[name])
        self.names = averaged
        self.averaged = [local(self.held.values[name]) for name in averaged], [tensors[name] for name in averaged]
        self.has_shards = any(isinstance(tensor, DTensor) for tensor in self.averaged[1])

    def _computed(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Returns the names of buffers that are computed for the average rather than averaged."""
        names = [vector for _, u, v, _ in spectral_vectors(self.run.module) for vector in (u, v)]
        if self.technique.buffers == "recompute":
            norms = [norm for norm in batch_norms(self.run.module).values() if norm.training]
            buffers = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
            names += [name for name, tensor in tensors.items() if id(tensor) in buffers]
        return names

    def _put_in(self) -> None:
        if not self.held.values or self.held.is_in:
            return
        if not self.run.trainer.sanity_checking:
            self._recompute()
        self.held.exchange(self.run.module)

    def follow(self) -> None:
        """Gives what is held the names that the module's tensors have now."""
        self.held.follow(tensors_of(self.run.module))

    def recompute_for_checkpoint(self) -> None:
        """Recomputes statistics for an average that is saved; training goes on as if nothing had been saved."""
        now = self.updates, self.run.trainer.global_step
        if self.held.is_in or not self.held.values or self.saved_at == now:
            return
        self.saved_at = now
        was_recomputed = self.is_recomputed
        self._recompute()
        # Statistics of a part of an epoch don't count: more inputs are known when the weights are evaluated.
        self.is_recomputed = was_recomputed or self.run.trainer.is_last_batch

    def _recompute(self) -> None:
        if self.technique.buffers != "recompute" or self.is_recomputed:
            return
        with self._averaged_module() as module:
            statistics = recomputed_statistics(self.run.trainer, module, self.inputs)
        with torch.inference_mode(False), torch.no_grad():
            for name, value in statistics.items():
                if name in self.held.values:
                    self.held.values[name].copy_(value)
        self.is_recomputed = True

    @contextmanager
    def _averaged_module(self) -> Iterator[LightningModule]:
        """Yields a copy of the module with the average; where it can't be copied, the module itself."""
        run, name = self.run, type(self.technique).__name__
        self.held.follow(tensors_of(run.module))
        if is_sharded(run.module):
            rank_zero_warn(
                f"{name} evaluates the module itself, because FSDP2 doesn't let a sharded one be copied: what it "
                "counts by itself it counts twice"
            )
            self.held.exchange(run.module)
            try:
                yield run.module
            finally:
                self.held.exchange(run.module)
            return
        copied = copy_module(run.trainer, run.module, name)
        self.held.write_into(copied)
        yield copied

    def _validate(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        """Wraps the fit's validation."""
        trainer = self.run.trainer
        is_restarted = trainer.fit_loop.epoch_loop.val_loop.restarting
        if self._reports and self.held.values and not trainer.sanity_checking and not is_restarted:
            self._recompute()
            with self._averaged_module() as module:
                report_validation(trainer, module, f"{self.technique.prefix}{self.technique.suffix(trainer)}")
        # Around all hooks of the validation: others may swap weights in theirs.
        if self._gives and not self._reports:
            self._put_in()
            self.evaluated = fingerprint(self.run.module)
        result = inner(*args, **kwargs)
        if self.held.is_in:
            if not self._is_as_evaluated():
                self._warn_of_written_weights()
            self.held.exchange(self.run.module)
        return result

    def _prune(self, inner: Any, *args: Any, **kwargs: Any) -> None:
        """Wraps what prunes, and may rewind, weights within the validation: it is given the trained ones."""
        is_in = self.held.is_in
        if is_in:
            self.held.exchange(self.run.module)
        inner(*args, **kwargs)
        if is_in:
            self.held.exchange(self.run.module)
            self.evaluated = fingerprint(self.run.module)

    def _save_pruned(self, inner: Any, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Wraps what makes pruning permanent in a checkpoint, for which it replaces all weights by the module's."""
        inner(trainer, module, checkpoint)
        self.technique.on_save_checkpoint(trainer, module, checkpoint)

    def _is_as_evaluated(self) -> bool:
        now, before = fingerprint(self.run.module), self.evaluated
        # Weights that are renamed, as by pruning, come in another order.
        return now.shape == before.shape and now.sort().values.allclose(before.sort().values, 0, 0, equal_nan=True)

    def _warn_of_written_weights(self) -> None:
        if not self.is_told_of_written:
            self.is_told_of_written = True
            rank_zero_warn(
                f"weights were changed in validation, while the module had the average of "
                f"{type(self.technique).__name__}: training goes on with the trained ones, as they were before; change "
                "those in other hooks, such as on_train_epoch_end"
            )

    def _state_dict(self, inner: Any) -> dict[str, Any]:
        """Wraps the strategy's method, because a checkpoint of the weights alone calls no callback."""
        self.follow()
        if self._gives:
            self.recompute_for_checkpoint()
        saved: dict[str, Any] = inner()
        if self._gives:
            self.held.save_into(saved, self.run.module)
        return saved

    @property
    def _gives(self) -> bool:
        return self.technique.gives_weights(self.run.trainer)

    @property
    def _reports(self) -> bool:
        return self.technique.validate == "both" or not self._gives


def _differ_in_shape(held: Tensor, tensor: Tensor) -> bool:
    return held.shape != tensor.shape
