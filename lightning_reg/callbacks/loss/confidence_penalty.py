"""A penalty on confident predictions."""

from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.loss.logits import LogitsSession
from lightning_reg.callbacks.loss.loss_term import LossTerm
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.step import Run
from lightning_reg.functional.loss.output_penalties import confidence_penalty
from lightning_reg.settings import check_range

__all__ = ["ConfidencePenalty"]


class ConfidencePenalty(LossTerm):
    """Rewards predictions that are not certain: −β times their entropy joins the loss.

    What it does: takes the logits that the module's training step passes to ``cross_entropy`` (``nll_loss`` likewise),
    and adds −β H(softmax(logits)) to the loss that goes into backward. No change of the module is needed, and the loss
    that it logs stays clean. Where there are several such calls in a step, each is penalized; targets that they ignore
    aren't. What the training step returns, and so ``outputs`` in ``on_train_batch_end``, contains the term.

    When to use: in place of label smoothing, to which it is closely related, for better calibrated predictions. When
    not: together with label smoothing or Mixup, which do the same.

    Cost: one softmax of the logits. No state.

    Deviates from the paper: no threshold on the entropy; its annealing is a ``schedule``.

    Args:
        weight: Strength β, at least 0; 0.1 is usual.
        schedule: Factor of the strength over the course of training; constant where None.

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
    def new_session(self, run: Run) -> LogitsSession:
        return LogitsSession(self, run, self._penalty)

    def _penalty(self, logits: Tensor, counted: Tensor | None) -> Tensor:
        return confidence_penalty(logits, self.weight, counted=counted)
