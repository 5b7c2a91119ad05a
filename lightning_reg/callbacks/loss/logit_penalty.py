"""A penalty on the size of logits, or a loss that doesn't depend on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.callbacks.loss.logits import LogitsSession, refuse_transformed
from lightning_reg.callbacks.loss.loss_term import LossTerm, TermSession
from lightning_reg.core.checkpointing import refuse_checkpointed, will_have_gradients
from lightning_reg.core.facts import Choice, Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.step import Run
from lightning_reg.functional.loss.output_penalties import max_logit_penalty, normalized_logits, z_loss
from lightning_reg.settings import SettingError, check_choice, check_range

__all__ = ["LogitPenalty"]


class LogitPenalty(LossTerm):
    """Keeps logits small: MaxSup, the z-loss, or a cross entropy of logits of one length (LogitNorm).

    What it does: takes the logits that the module's training step passes to ``cross_entropy``, and adds the mean over
    samples of λ (max z − mean z), or of λ log²Σeᶻ, to the loss that goes into backward. No change of the module is
    needed, and the loss that it logs stays clean. Several such calls in a step are each penalized; targets that they
    ignore aren't. Computed in at least 32 bits, also under autocast.

    ``"norm"`` is not a penalty but another loss: where ``cross_entropy`` is called with logits z, a share λ of it
    becomes that of z / (τ‖z‖), with the same targets, class weights and smoothing; with λ = 1 it is LogitNorm. So
    growing logits no longer lower the loss. The module logs this loss, as if it had computed it itself; validation
    isn't changed.

    When to use: ``"max"`` in place of label smoothing. Both make predictions less confident, but MaxSup does so whether
    the prediction is right or wrong, and features stay apart within a class, so that they transfer better. ``"z"``
    where logits drift, with many classes or in 16 bits. ``"norm"`` for confidences that tell unfamiliar inputs from
    familiar ones; it yields underconfident models, which ``TemperatureScaling`` corrects. When not: beside label
    smoothing or Mixup, which do the same as ``"max"``; for accuracy on small data, which neither ``"max"`` nor label
    smoothing raised in the study ``wave2_loss``.

    Cost: one pass over the logits; with ``"norm"`` a second cross entropy. No state.

    Args:
        kind: ``"max"`` for MaxSup, ``"z"`` for the z-loss, ``"norm"`` for LogitNorm.
        weight: Strength λ, at least 0; 0.1 to 0.5 is usual for ``"max"``, 1e-4 for ``"z"``, 1 for ``"norm"``, where it
            is a share.
        temperature: Temperature τ of ``"norm"``, above 0; 0.04 is the paper's for CIFAR-10; larger for few classes.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/logit``, its value (with ``"norm"`` by how much the loss is higher than that of the logits), and
        ``penalty/logit_share``, its share of loss plus penalty (not with ``"norm"``), at the steps the trainer logs.

    Raises:
        SettingError: If a setting is out of its range, the module optimizes manually, or its first training step
            doesn't call ``cross_entropy``. With ``"max"`` ``nll_loss`` does as well; of log-probabilities the z-loss
            would be 0.

    Reference:
        Yuxuan Zhou, Heng Li, Zhi-Qi Cheng, Xudong Yan, Yifei Dong, Mario Fritz, Margret Keuper: MaxSup: Overcoming
        Representation Collapse in Label Smoothing, 2025, arXiv:2502.15798. Alexandre de Brébisson, Pascal Vincent: The
        Z-loss: a shift and scale invariant classification loss belonging to the Spherical Family, 2016,
        arXiv:1604.08859; as a term beside cross entropy: Aakanksha Chowdhery et al.: PaLM: Scaling Language Modeling
        with Pathways, 2022, arXiv:2204.02311. Hongxin Wei, Renchunzi Xie, Hao Cheng, Lei Feng, Bo An, Yixuan Li:
        Mitigating Neural Network Overconfidence with Logit Normalization, ICML 2022, arXiv:2205.09310.

    >>> LogitPenalty(kind="max", weight=0.2).weight
    0.2
    """

    tag = "logit"
    softens_predictions = True
    usual_ranges = (Choice("kind", ("max", "z")), Log("weight", 1e-4, 0.5))

    def __init__(
        self,
        *,
        kind: Literal["max", "z", "norm"] = "max",
        weight: float,
        temperature: float = 0.04,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_choice("kind", kind, ("max", "z", "norm"))
        check_range("weight", weight, low=0)
        check_range("temperature", temperature, low=0, low_open=True)
        if kind == "norm":
            largest = weight * (1.0 if schedule is None else max(schedule.bounds))
            check_range("weight times the schedule's factor", largest, low=0, high=1)
        super().__init__(schedule=schedule)
        self.kind = kind
        self.weight = weight
        self.temperature = temperature

    @property
    def used_settings(self) -> tuple[str, ...]:
        """Names of the settings that have an effect, for tables."""
        return ("kind", "weight", *(("temperature",) if self.kind == "norm" else ()), "schedule")

    @property
    @override
    def is_idle(self) -> bool:
        return self.weight == 0

    @override
    def new_session(self, run: Run) -> TermSession:
        if self.kind == "norm":
            return NormalizedSession(self, run)
        return LogitsSession(self, run, self._penalty, takes_log_probabilities=self.kind == "max")

    def _penalty(self, logits: Tensor, counted: Tensor | None) -> Tensor:
        penalty = max_logit_penalty if self.kind == "max" else z_loss
        return penalty(logits, self.weight, counted=counted)


@dataclass(eq=False)
class NormalizedSession(TermSession):
    """One fit in which losses are computed from logits of a fixed norm."""

    technique: LogitPenalty

    @override
    def _step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        share = self.technique.weight * self.strength.now(self.run.trainer)
        if self.technique.is_idle or (share == 0 and self.is_checked):
            self._log({})
            return training_step(*args, **kwargs)
        # Within the call itself, because whatever is done with the loss (mixing, a weight) applies to this one, too.
        with _NormalizedLosses(share, self.technique.temperature) as losses:
            output = training_step(*args, **kwargs)
        if output is None:  # this batch is skipped
            return output
        if not losses.rises:
            raise SettingError(
                "weight must be left out, because the training step doesn't call cross_entropy, whose input "
                "LogitPenalty takes for the logits"
            )
        self.is_checked = True
        self._log({"": torch.stack(losses.rises).sum()})
        return output


class _NormalizedLosses(TorchFunctionMode):
    """Replaces a share of each cross entropy by that of normalized logits; everything else runs unchanged.

    Attributes:
        rises: Differences between each loss and that of the logits themselves.
    """

    def __init__(self, share: float, temperature: float) -> None:
        super().__init__()
        self._share = share
        self._temperature = temperature
        self.rises: list[Tensor] = []

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.cross_entropy or not will_have_gradients():  # otherwise it is a metric
            return func(*args, **kwargs)
        refuse_checkpointed(LogitPenalty.__name__)
        loss = func(*args, **kwargs)
        logits, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
        refuse_transformed(logits, LogitPenalty.__name__)
        others = {name: value for name, value in kwargs.items() if name != "input"}
        changed = func(normalized_logits(logits, self._temperature), *rest, **others)
        total = torch.lerp(loss, changed.to(loss), self._share)
        self.rises.append((total - loss).detach().mean())
        return total
