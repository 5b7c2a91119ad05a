"""Penalties on activations: their size, and how much they change over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from lightning_reg.callbacks.loss.activations import ActivationsSession, activations_of
from lightning_reg.callbacks.loss.loss_term import LossTerm
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.selection import as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.functional.loss.output_penalties import activity_penalty, temporal_activity_penalty
from lightning_reg.settings import SettingError, check_dim, check_range

__all__ = ["ActivityPenalty"]


class ActivityPenalty(LossTerm):
    """Penalizes large activations (L1, L2, AR) and activations that change fast over time (TAR).

    What it does: λ₁ mean|a| + λ₂ mean a² + λ₃ mean(h_{t+1} − h_t)² of the outputs of the chosen modules, summed over
    modules, joins the loss that goes into backward. The loss that the module logs stays clean.

    When to use: L1 for sparse representations; AR and TAR (``l2`` and ``temporal`` on the last recurrent layer) for
    language models and other sequences. When not: before a normalization layer, which undoes a change of scale.

    Cost: reads the chosen activations once in the forward and once in the backward pass. No state.

    Interacts with: torch.compile: attach the callback before the first step of the compiled module, else its hooks
    aren't seen. Activation checkpointing of a chosen module is fine unless it is reentrant: what is recomputed isn't
    counted again. What the training step returns, and so ``outputs`` in ``on_train_batch_end``, contains the penalty.

    Deviates from the paper: the strengths apply to the mean over all elements, as in its code, and AR takes a module's
    own output; to include dropout, name the dropout layer behind it.

    Args:
        l1: Strength λ₁, at least 0; 0 where None.
        l2: Strength λ₂, at least 0; 0 where None. For AR 2 is usual.
        temporal: Strength λ₃, at least 0; 0 where None. For TAR 1 is usual.
        include: Globs over names of modules; where empty, all activation modules. If a module returns several tensors,
            the first counts.
        exclude: Globs over names of modules that are left out.
        time_dim: Dimension of time in the outputs; not used for torch's recurrent modules, whose layout is known.
        schedule: Factor of all strengths over the course of training; constant where None.

    Logs:
        ``penalty/activity``, its value, and ``penalty/activity_share``, its share of loss plus penalty, at the steps
        the trainer logs.

    Raises:
        SettingError: If a strength is negative or not finite, none is given, a glob matches nothing, or the module
            optimizes manually.

    Reference:
        Stephen Merity, Bryan McCann, Richard Socher: Revisiting Activation Regularization for Language RNNs, 2017,
        arXiv:1708.01009.

    >>> ActivityPenalty(l2=2.0, temporal=1.0, include=("lstm",)).temporal
    1.0
    """

    tag = "activity"
    usual_ranges = (Log("l1", 1e-5, 1e-1), Log("l2", 1e-4, 10.0), Log("temporal", 1e-4, 10.0))

    def __init__(
        self,
        *,
        l1: float | None = None,
        l2: float | None = None,
        temporal: float | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        time_dim: int = 1,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        if l1 is None and l2 is None and temporal is None:
            raise SettingError("l1, l2 or temporal must be given; 0 switches the penalty off")
        super().__init__(schedule=schedule)
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.l1 = 0.0 if l1 is None else l1
        self.l2 = 0.0 if l2 is None else l2
        self.temporal = 0.0 if temporal is None else temporal
        for name in ("l1", "l2", "temporal"):
            check_range(name, getattr(self, name), low=0)
        check_dim("time_dim", time_dim)
        self.time_dim = time_dim

    @property
    @override
    def is_idle(self) -> bool:
        return self.l1 == self.l2 == self.temporal == 0

    @override
    def new_session(self, run: Run) -> Session[Any]:
        choose = partial(activations_of, run.module, self.include, self.exclude)
        return ActivitySession(self, run, choose, expects_all=bool(self.include))


@dataclass(eq=False)
class ActivitySession(ActivationsSession):
    """One fit of the activity penalty; it records the time dimension of each output."""

    technique: ActivityPenalty

    @override
    def noted(self, module: nn.Module, output: Any, activations: Tensor) -> int:
        first = output[0] if isinstance(output, (tuple, list)) else None
        if self.technique.temporal and any(isinstance(value, PackedSequence) for value in (output, first)):
            raise SettingError("temporal must be 0 for packed sequences, whose steps don't lie along one dimension")
        if isinstance(module, nn.RNNBase):
            return activations.ndim - 2 if module.batch_first else 0
        return self.technique.time_dim

    @override
    def value(self, activations: Tensor, noted: Any) -> Tensor:
        technique = self.technique
        term = activity_penalty(activations, l1=technique.l1, l2=technique.l2)
        if technique.temporal:
            term = term + temporal_activity_penalty(activations, technique.temporal, time_dim=noted)
        return term
