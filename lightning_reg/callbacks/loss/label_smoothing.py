"""Label smoothing of the loss that a training step computes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.callbacks.loss.logits import check_log_probabilities
from lightning_reg.core.checkpointing import refuse_checkpointed, will_have_gradients
from lightning_reg.core.facts import SCHEDULE_CHART, Linear, Place
from lightning_reg.core.lightning import logs_now, refuse_compiled_whole
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError, check_range

__all__ = ["LabelSmoothing"]


class LabelSmoothing(Technique):
    """Smooths the labels of somebody else's training step: ε of the probability is shared by all classes.

    What it does: where the training step calls ``cross_entropy`` with class indices, it is called with
    ``label_smoothing=ε``, so that the target of the label's class becomes 1 − ε + ε/C and that of any other class ε/C.
    Class weights, ignored labels and the reduction aren't changed. ``nll_loss``, which takes log-probabilities, is
    smoothed in the same way. The batch, metrics and validation aren't affected.

    When to use: for classifiers that are trained long, above all where labels are partly wrong; 0.1 is usual, and a
    falling schedule ends on the plain labels. When not: beside ``ConfidencePenalty``, ``LogitPenalty`` or Mixup, which
    have the same effect; for a teacher in distillation or features that are to be transferred, where ``LogitPenalty``
    does less harm; for a loss of your own, which takes the argument itself.

    Cost: one mean over the log-probabilities. No state.

    Interacts with: ``BatchMixing``: the two losses that it interpolates are both smoothed. Targets that are
    probabilities already (``ImageData(mix=...)``, distillation) aren't changed. The training step logs the smoothed
    loss, as if it had set the argument itself.

    Args:
        smoothing: Share ε of the target that is spread evenly over all classes, in [0, 1]; 1 for equal targets.
        schedule: Factor of ε over the course of training; constant where None.

    Logs:
        ``schedule/label_smoothing``, the factor, where there is a schedule, at the steps the trainer logs.

    Raises:
        SettingError: If ``smoothing``, or its product with the schedule, is out of its range, or the module is compiled
            as a whole; at the first batch, if the training step computes neither loss of class indices, smooths them
            itself, or computes it within activation checkpointing.

    Reference:
        Christian Szegedy, Vincent Vanhoucke, Sergey Ioffe, Jonathon Shlens, Zbigniew Wojna: Rethinking the Inception
        Architecture for Computer Vision, CVPR 2016, arXiv:1512.00567. Rafael Müller, Simon Kornblith, Geoffrey Hinton:
        When Does Label Smoothing Help?, NeurIPS 2019, arXiv:1906.02629.

    >>> LabelSmoothing(smoothing=0.1).smoothing
    0.1
    """

    place = Place.LOSS
    charts = (SCHEDULE_CHART,)
    softens_predictions = True
    usual_ranges = (Linear("smoothing", 0.0, 0.2),)

    def __init__(self, *, smoothing: float, schedule: StrengthSchedule | None = None) -> None:
        super().__init__()
        check_range("smoothing", smoothing, low=0, high=1)
        check_schedule(schedule)
        if schedule is not None:
            largest = smoothing * max(schedule.bounds)
            check_range("smoothing times the schedule's factor", largest, low=0, high=1)
        self.smoothing = smoothing
        self.schedule = schedule

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return SmoothingSession(self, run)


@dataclass(eq=False)
class SmoothingSession(Session[LabelSmoothing]):
    """One fit of label smoothing.

    Attributes:
        factor: Factor of ε by the schedule.
        name: Name of the technique in logged tags.
        is_checked: Whether a training step has been seen to compute a loss that is smoothed.
        is_told: Whether a warning has said that a later one didn't.
    """

    factor: ScheduledStrength = field(init=False)
    name: str = field(init=False)
    is_checked: bool = field(default=False, init=False)
    is_told: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        refuse_compiled_whole(run.module, type(technique).__name__)
        self.factor = ScheduledStrength(technique.schedule, run.trainer)
        self.name = "label_smoothing" + technique.suffix(run.trainer)
        run.around_step("training_step", self._step)

    def _step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if logs_now(self.run.trainer):
            self.factor.log(self.run.module, self.name)
        smoothing = self.technique.smoothing * self.factor.now(self.run.trainer)
        # The first step is watched even if a schedule begins at 0: a loss that can't be smoothed is an error now.
        if self.technique.smoothing == 0 or (smoothing == 0 and self.is_checked):
            return training_step(*args, **kwargs)
        with _SmoothedLosses(smoothing, checks=not self.is_checked) as losses:
            output = training_step(*args, **kwargs)
        is_skipped = output is None and self.run.module.automatic_optimization
        if losses.seen:
            self.is_checked = True
        elif not self.is_checked and not is_skipped:
            raise SettingError(
                "smoothing must be left out, because the training step calls neither cross_entropy nor nll_loss "
                "with class indices, which LabelSmoothing smooths; mixing in the data module, for one, makes them "
                "probabilities: use BatchMixing, or label smoothing in the loss itself"
            )
        elif self.run.module.automatic_optimization and not is_skipped and not self.is_told:
            self.is_told = True
            rank_zero_warn(
                "LabelSmoothing does nothing in a training step that calls neither cross_entropy nor nll_loss with "
                f"class indices, as in epoch {self.run.trainer.current_epoch}"
            )
        return output


class _SmoothedLosses(TorchFunctionMode):
    """Calls the losses of class indices with label smoothing; everything else runs unchanged.

    Args:
        checks: Whether to check for losses that can't be smoothed.

    Attributes:
        seen: Number of losses that were smoothed.
    """

    def __init__(self, smoothing: float, *, checks: bool) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.checks = checks
        self.seen = 0

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Without gradients it is a metric.
        if func not in (F.cross_entropy, F.nll_loss) or not will_have_gradients():
            return func(*args, **kwargs)
        target = args[1] if len(args) > 1 else kwargs["target"]
        if target.is_floating_point():
            return func(*args, **kwargs)
        if self.checks:
            self._check(args, kwargs)
            if func is F.nll_loss:
                check_log_probabilities(args, kwargs, LabelSmoothing.__name__)
        self.seen += 1
        if self.smoothing == 0:
            return func(*args, **kwargs)
        # The log-softmax of log-probabilities is the identity, so that one function serves both.
        return F.cross_entropy(*args[:7], **{**kwargs, "label_smoothing": self.smoothing})

    def _check(self, args: Any, kwargs: dict[str, Any]) -> None:
        own = args[7] if len(args) > 7 else kwargs.get("label_smoothing", 0.0)
        if own:
            raise SettingError(
                f"label_smoothing of the module's own loss must be 0 with LabelSmoothing, but is {own}; leave out one "
                "of the two"
            )
        refuse_checkpointed(LabelSmoothing.__name__)
