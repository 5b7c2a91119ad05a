"""A penalty on the Jacobian of the logits by the inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.loss.input_term import InputTermSession
from lightning_reg.callbacks.loss.logits import LogitsSeen
from lightning_reg.callbacks.loss.loss_term import LossTerm
from lightning_reg.core.batches import Key, check_key
from lightning_reg.core.facts import Log
from lightning_reg.core.lightning import instance_number
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.streams import base_seed, check_seed, random_stream
from lightning_reg.functional.loss.input_penalties import jacobian_penalty, random_directions, unit_directions
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["JacobianPenalty"]


class JacobianPenalty(LossTerm):
    """Penalizes how fast the logits change with the inputs: the squared norm of their Jacobian, by random projections.

    What it does: the training step gets inputs that require a gradient. For the logits z that it passes to
    ``cross_entropy``, λ/2 times the mean over samples of ‖∂z/∂x‖²_F joins the loss that goes into backward; the norm is
    estimated, without bias, along random directions in the space of the classes, drawn anew for every sample and batch.
    The user's batch, and the loss that the module logs, aren't changed.

    When to use: for predictions that are robust to noise and small attacks, on small data sets. Unlike
    ``InputGradientPenalty`` it doesn't fade where the loss has become small. When not: where a step's time is short; on
    integer inputs; for accuracy on clean inputs, which it lowered by nearly five points at a strength of 0.01 in the
    study ``wave2_loss``.

    Cost: about two more backward passes per projection, and the memory of their graph. No state.

    Interacts with: attention, whose fused kernels have no second derivative and are plain operations instead, outside
    of activation checkpointing, and cuDNN's recurrent layers, which have none either and which torch names in its
    error. BatchNorm makes logits depend on the inputs of other samples; their share is penalized, too. Random numbers
    depend only on seed, rank, epoch and batch.

    Args:
        weight: Strength λ, at least 0; 0.01 is usual.
        projections: Number of random directions per sample, at least 1; None for the exact norm over all classes, which
            costs as many backward passes.
        input_key: Position of the inputs in a batch: an index, a name, or a getter and a setter.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/jacobian``, its value, and ``penalty/jacobian_share``, its share of loss plus penalty, at the steps
        the trainer logs.

    Raises:
        SettingError: If a setting is out of its range, the module optimizes manually or is compiled, or weights are
            sharded; at the first batch, if its inputs aren't of a floating dtype, the training step doesn't call
            ``cross_entropy``, or the logits don't depend on the inputs.

    Reference:
        Judy Hoffman, Daniel A. Roberts, Sho Yaida: Robust Learning with Jacobian Regularization, 2019,
        arXiv:1908.02729.

    >>> JacobianPenalty(weight=0.01).projections
    1
    """

    tag = "jacobian"
    usual_ranges = (Log("weight", 1e-4, 1.0),)

    def __init__(
        self,
        *,
        weight: float,
        projections: int | None = 1,
        input_key: Key = 0,
        seed: int | None = None,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        if projections is not None:
            check_count("projections", projections, high=10**4)
        check_seed(seed)
        check_range("weight", weight, low=0)
        check_key("input_key", input_key)
        super().__init__(schedule=schedule)
        self.weight = weight
        self.input_key = input_key
        self.projections = projections
        self.seed = seed

    @property
    @override
    def is_idle(self) -> bool:
        return self.weight == 0

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return JacobianSession(self, run, self.input_key)


@dataclass(eq=False)
class JacobianSession(InputTermSession):
    """One fit of the Jacobian penalty.

    Attributes:
        seen: Logits of the training step, with masks of the samples that count.
        number: Index of this technique among the callbacks of its class.
        batch_idx: Index of the current training batch.
    """

    technique: JacobianPenalty
    seen: list[tuple[Tensor, Tensor | None]] = field(default_factory=list, init=False)
    number: int = field(init=False)
    batch_idx: int = field(default=0, init=False)

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.number = instance_number(self.run.trainer, self.technique)

    @override
    def batch_starts(self, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    @override
    @contextmanager
    def watching(self) -> Iterator[None]:
        self.seen.clear()
        name = None if self.is_checked else type(self.technique).__name__
        with super().watching(), LogitsSeen(self.seen, {F.cross_entropy: "cross_entropy"}, name):
            yield

    @override
    def by_inputs(self, loss: Tensor) -> Tensor:
        if not self.seen:
            raise SettingError(
                "weight must be left out, because the training step doesn't call cross_entropy, whose input "
                "JacobianPenalty takes for the logits"
            )
        generator = self._generator()
        terms = [self._of(logits, counted, generator) for logits, counted in self.seen]
        self.seen.clear()
        return torch.stack(terms).sum()

    def _of(self, logits: Tensor, counted: Tensor | None, generator: torch.Generator) -> Tensor:
        technique = self.technique
        if logits.ndim < 2 or (technique.projections is None and logits.ndim > 2):
            raise SettingError(
                "projections must be a number where logits have more than a row of classes a sample, and there must be "
                f"a row, but logits have shape {tuple(logits.shape)}"
            )
        if technique.projections is None:
            directions = unit_directions(logits)
        else:
            directions = random_directions(logits, technique.projections, generator=generator)
        if counted is not None:
            directions = directions * counted.unsqueeze(1)
        return jacobian_penalty(logits, self.inputs, technique.weight, directions=directions)

    def _generator(self) -> torch.Generator:
        module = self.run.module
        position = (module.global_rank, module.current_epoch, self.batch_idx)
        stream = random_stream(base_seed(self.technique.seed), *position, type(self.technique).__name__, self.number)
        return torch.Generator().manual_seed(stream.getrandbits(63))
