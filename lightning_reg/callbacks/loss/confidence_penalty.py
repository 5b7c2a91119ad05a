"""A penalty on confident predictions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.callbacks.loss.loss_term import LossTerm, TermSession
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.step import Run
from lightning_reg.functional.output_penalties import confidence_penalty
from lightning_reg.settings import SettingError, check_range

__all__ = ["ConfidencePenalty"]


class ConfidencePenalty(LossTerm):
    """Rewards predictions that are not certain: −β times their entropy joins the loss.

    What it does: takes the logits that the module's training step hands to ``cross_entropy`` (``nll_loss`` likewise),
    and adds −β H(softmax(logits)) to the loss that goes into backward. No name and no code of the module is needed, and
    the loss that it logs stays clean. Where there are several such calls in a step, each is penalized; targets that
    they ignore aren't. What the training step returns, and so ``outputs`` in ``on_train_batch_end``, contains the term.

    When to use: in place of label smoothing, to which it is a close relative, for better calibrated predictions. When
    not: together with label smoothing or Mixup, which do the same.

    Cost: one softmax of the logits. No state.

    Deviates from the paper: no threshold of the entropy; its annealing is a ``schedule``.

    Args:
        weight: Strength β, at least 0; 0.1 is usual.
        schedule: What the strength is multiplied by as training goes on; constant where None.

    Logs:
        ``penalty/confidence``, its value, which is negative, and ``penalty/confidence_share``, its size in loss plus
        penalty, at the steps the trainer logs.

    Raises:
        SettingError: If ``weight`` is negative or not finite, the module optimizes manually, or its first training step
            calls neither function.

    Reference:
        Gabriel Pereyra, George Tucker, Jan Chorowski, Łukasz Kaiser, Geoffrey Hinton: Regularizing Neural Networks by
        Penalizing Confident Output Distributions, 2017, arXiv:1701.06548.

    >>> ConfidencePenalty(weight=0.1).weight
    0.1
    """

    tag = "confidence"
    softens_predictions = True
    usual_ranges = (Log("weight", 1e-2, 1.0),)

    def __init__(self, *, weight: float, schedule: StrengthSchedule | None = None) -> None:
        check_range("weight", weight, low=0)
        super().__init__(schedule=schedule)
        self.weight = weight

    @property
    @override
    def is_idle(self) -> bool:
        return self.weight == 0

    @override
    def new_session(self, run: Run) -> "ConfidenceSession":
        return ConfidenceSession(self, run)


@dataclass(eq=False)
class ConfidenceSession(TermSession):
    """One fit: the logits of a training step, and which of them count."""

    technique: ConfidencePenalty
    seen: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)

    @override
    @contextmanager
    def watching(self) -> Iterator[None]:
        self.seen.clear()
        with _LogitsSeen(self.seen):
            yield

    @override
    def term(self) -> Tensor:
        if not self.seen:
            raise SettingError(
                "weight must be left out, because the training step calls neither cross_entropy nor nll_loss, whose "
                "input ConfidencePenalty takes for the logits"
            )
        weight = self.technique.weight
        terms = [confidence_penalty(logits, weight, counted=counted) for logits, counted in self.seen]
        self.seen.clear()
        return torch.stack(terms).sum()


class _LogitsSeen(TorchFunctionMode):
    """Notes what the loss functions are called with; everything runs as it would."""

    def __init__(self, logits: list[tuple[Tensor, Tensor | None]]) -> None:
        super().__init__()
        self._logits = logits

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.cross_entropy, F.nll_loss) and torch.is_grad_enabled():  # else it is a metric
            given = (
                dict(zip(("input", "target", "weight", "size_average", "ignore_index"), args, strict=False)) | kwargs
            )
            logits, target = given["input"], given["target"]
            ignored = given.get("ignore_index", -100)
            self._logits.append((logits, None if target.is_floating_point() else target != ignored))
        return func(*args, **kwargs)
