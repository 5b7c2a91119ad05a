"""A penalty on the size of logits."""

from typing import Literal

from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.loss.logits import LogitsSession
from lightning_reg.callbacks.loss.loss_term import LossTerm
from lightning_reg.core.facts import Choice, Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.step import Run
from lightning_reg.functional.loss.output_penalties import max_logit_penalty, z_loss
from lightning_reg.settings import check_choice, check_range

__all__ = ["LogitPenalty"]


class LogitPenalty(LossTerm):
    """Keeps logits small: the largest one above their mean (MaxSup), or the log of the softmax's denominator (z-loss).

    What it does: takes the logits that the module's training step hands to ``cross_entropy``, and adds the mean over
    samples of λ (max z − mean z), or of λ log²Σeᶻ, to the loss that goes into backward. No name and no code of the
    module is needed, and the loss that it logs stays clean. Several such calls in a step are each penalized; targets
    that they ignore aren't. Computed in at least 32 bits, also under autocast.

    When to use: ``"max"`` in place of label smoothing. Both ask for less confident predictions, but MaxSup does so
    whether the prediction is right or wrong, and features stay apart within a class, so that they transfer better.
    ``"z"`` where logits drift, with many classes or in 16 bits. When not: beside label smoothing or Mixup, which do
    the same as ``"max"``.

    Cost: one pass over the logits. No state.

    Args:
        kind: ``"max"`` for MaxSup, ``"z"`` for the z-loss.
        weight: Strength λ, at least 0; 0.1 to 0.5 is usual for ``"max"``, 1e-4 for ``"z"``.
        schedule: What the strength is multiplied by as training goes on; constant where None.

    Logs:
        ``penalty/logit``, its value, and ``penalty/logit_share``, its share of loss plus penalty, at the steps the
        trainer logs.

    Raises:
        SettingError: If ``kind`` is neither, ``weight`` is negative or not finite, the module optimizes manually, or
            its first training step doesn't call ``cross_entropy``. With ``"max"`` ``nll_loss`` does as well; of
            log-probabilities the z-loss would be 0.

    Reference:
        Yuxuan Zhou, Heng Li, Zhi-Qi Cheng, Xudong Yan, Yifei Dong, Mario Fritz, Margret Keuper: MaxSup: Overcoming
        Representation Collapse in Label Smoothing, 2025, arXiv:2502.15798. Alexandre de Brébisson, Pascal Vincent: The
        Z-loss: a shift and scale invariant classification loss belonging to the Spherical Family, 2016,
        arXiv:1604.08859; as a term beside cross entropy: Aakanksha Chowdhery et al.: PaLM: Scaling Language Modeling
        with Pathways, 2022, arXiv:2204.02311.

    >>> LogitPenalty(kind="max", weight=0.2).weight
    0.2
    """

    tag = "logit"
    softens_predictions = True
    usual_ranges = (Choice("kind", ("max", "z")), Log("weight", 1e-4, 0.5))

    def __init__(
        self, *, kind: Literal["max", "z"] = "max", weight: float, schedule: StrengthSchedule | None = None
    ) -> None:
        check_choice("kind", kind, ("max", "z"))
        check_range("weight", weight, low=0)
        super().__init__(schedule=schedule)
        self.kind = kind
        self.weight = weight

    @property
    @override
    def is_idle(self) -> bool:
        return self.weight == 0

    @override
    def new_session(self, run: Run) -> LogitsSession:
        return LogitsSession(self, run, self._penalty, takes_log_probabilities=self.kind == "max")

    def _penalty(self, logits: Tensor, counted: Tensor | None) -> Tensor:
        penalty = max_logit_penalty if self.kind == "max" else z_loss
        return penalty(logits, self.weight, counted=counted)
