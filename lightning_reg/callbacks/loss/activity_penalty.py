"""Penalties on activations: their size, and how much they change over time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import override

from lightning_reg.callbacks.loss.loss_term import LossTerm, TermSession
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.selection import as_patterns, select_modules
from lightning_reg.core.step import Run
from lightning_reg.functional.output_penalties import activity_penalty, temporal_activity_penalty
from lightning_reg.settings import SettingError, check_range

__all__ = ["ActivityPenalty"]

_ACTIVATIONS = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")
)


class ActivityPenalty(LossTerm):
    """Penalizes large activations (L1, L2, AR) and activations that change fast over time (TAR).

    What it does: λ₁ mean|a| + λ₂ mean a² + λ₃ mean(h_{t+1} − h_t)² of the outputs of the chosen modules, summed over
    modules, joins the loss that goes into backward. The loss that the module logs stays clean.

    When to use: L1 for sparse representations; AR and TAR (``l2`` and ``temporal`` on the last recurrent layer) for
    language models and other sequences. When not: before a normalization layer, which undoes a change of scale.

    Cost: reads the chosen activations once in the forward and once in the backward pass. No state.

    Interacts with: torch.compile: attach it before the first step of the compiled module, else its hooks aren't seen.
    Activation checkpointing of a chosen module is fine unless it is reentrant: what is computed again isn't counted
    again. What the training step returns, and so ``outputs`` in ``on_train_batch_end``, contains the penalty.

    Deviates from the paper: the strengths are λ for the mean over all elements, as in its code, and AR takes a
    module's own output; to have dropout in it, name the dropout layer behind.

    Args:
        l1: Strength λ₁, at least 0, which where None it is.
        l2: Strength λ₂, likewise; for AR 2 is usual.
        temporal: Strength λ₃, likewise; for TAR 1 is usual.
        include: Globs over module names; where empty, all activation modules. Of a module that returns several tensors
            the first counts.
        exclude: Globs over module names that are left out.
        time_dim: Dimension of time; of torch's recurrent modules it is known.
        schedule: What all strengths are multiplied by as training goes on; constant where None.

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
        self.l1 = 0.0 if l1 is None else l1
        self.l2 = 0.0 if l2 is None else l2
        self.temporal = 0.0 if temporal is None else temporal
        for name in ("l1", "l2", "temporal"):
            check_range(name, getattr(self, name), low=0)
        super().__init__(schedule=schedule)
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.time_dim = time_dim

    @property
    @override
    def is_idle(self) -> bool:
        return self.l1 == self.l2 == self.temporal == 0

    @override
    def new_session(self, run: Run) -> "ActivitySession":
        return ActivitySession(self, run)

    def chosen(self, pl_module: LightningModule) -> list[nn.Module]:
        """Returns the modules whose outputs are penalized."""
        if self.include:
            return list(select_modules(pl_module, include=self.include, exclude=self.exclude).values())
        chosen = select_modules(pl_module, include=("*",), exclude=self.exclude).values()
        activations = [parameter for parameter in chosen if isinstance(parameter, _ACTIVATIONS)]
        if not activations:
            raise SettingError(
                "include must name modules, because there is no activation module such as torch.nn.ReLU among "
                + ", ".join(name for name, _ in pl_module.named_modules() if name)
            )
        return activations


@dataclass(eq=False)
class ActivitySession(TermSession):
    """One fit.

    Attributes:
        is_watching: Whether a training step runs.
        seen: Outputs, their dimension of time, and their versions: how often they were changed in place.
    """

    technique: ActivityPenalty
    is_watching: bool = False
    seen: list[tuple[Tensor, int, int | None]] = field(default_factory=list)

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for module in self.technique.chosen(self.run.module):
            self.run.until_end(module.register_forward_hook(_Hook(self)))

    def collect(self, module: nn.Module, output: Any) -> None:
        """Notes what a module returned."""
        # Evaluation, a checkpointed layer that is computed again in the backward pass, a part that isn't trained.
        if not self.is_watching or not torch.is_grad_enabled():
            return
        # Only noted here: a checkpointed layer has to compute the same thing both times.
        activations = _first_tensor(output)
        if self.technique.temporal and isinstance(output, (tuple, list)) and isinstance(output[0], PackedSequence):
            raise SettingError("temporal must be 0 for packed sequences, whose steps don't lie along one dimension")
        time_dim = self.technique.time_dim
        if isinstance(module, nn.RNNBase):
            time_dim = activations.ndim - 2 if module.batch_first else 0
        compiling = torch.compiler.is_compiling()  # then nothing is changed in place
        self.seen.append((activations, time_dim, None if compiling else activations._version))

    @override
    @contextmanager
    def watching(self) -> Iterator[None]:
        self.seen.clear()
        self.is_watching = True
        try:
            yield
        finally:
            self.is_watching = False

    @override
    def term(self) -> Tensor:
        if not self.seen:
            raise SettingError(
                "include must name modules that the training step runs, but none of them did; what "
                "torch.compile has run before the fit, or reentrant checkpointing runs, can't be watched"
            )
        term = torch.stack([self._term_of(*record) for record in self.seen]).sum()
        self.seen.clear()
        return term

    def _term_of(self, activations: Tensor, time_dim: int, version: int | None) -> Tensor:
        if version is not None and activations._version != version:
            raise SettingError(
                "include must name modules whose outputs are left as they are, but one is changed in place by what "
                "comes behind it, such as ReLU(inplace=True); name that module instead"
            )
        # Cast once for both, so that their gradients meet before they are rounded to 16 bits.
        activations = activations.to(torch.promote_types(activations.dtype, torch.float32))
        technique = self.technique
        term = activity_penalty(activations, l1=technique.l1, l2=technique.l2)
        if technique.temporal:
            term = term + temporal_activity_penalty(activations, technique.temporal, time_dim=time_dim)
        return term


class _Hook:
    """Copies and pickles of the module have one that does nothing."""

    def __init__(self, session: ActivitySession) -> None:
        self.session = session

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.session.collect(module, output)

    def __reduce__(self) -> Any:
        return _nothing, ()


def _nothing() -> Callable[..., None]:
    return _does_nothing


def _does_nothing(*args: Any) -> None:
    pass


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)) and output:
        return _first_tensor(output[0])
    raise SettingError(
        f"include must name modules that return tensors, but one of them returns {type(output).__name__}"
    )
