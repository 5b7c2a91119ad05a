"""Terms of the logits that a training step passes to its loss function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.callbacks.loss.loss_term import TermSession
from lightning_reg.core.checkpointing import refuse_checkpointed, will_have_gradients
from lightning_reg.core.hooks import is_transformed
from lightning_reg.settings import SettingError

__all__ = ["LogitsSeen", "LogitsSession", "check_log_probabilities", "copies_of", "refuse_transformed"]

_ROUNDING = 0.1  # of the logarithm of a sum of probabilities, in 16 bits


@dataclass(eq=False)
class LogitsSession(TermSession):
    """One fit of a term of the training step's logits.

    Attributes:
        penalty: Function of logits (N, C, ...) and a mask of the samples that count, or None for all, that returns the
            term.
        takes_log_probabilities: Whether ``nll_loss``, which takes log-probabilities, is watched as well.
        copies: Number of copies of each sample in the batch.
        seen: Logits of the current training step, with their masks.
    """

    penalty: Callable[[Tensor, Tensor | None], Tensor]
    takes_log_probabilities: bool = True
    copies: int = 1
    seen: list[tuple[Tensor, Tensor | None]] = field(default_factory=list, init=False)

    @property
    def losses(self) -> dict[Callable[..., Tensor], str]:
        """Names of the loss functions whose input is taken for the logits, by function."""
        normalized = {F.nll_loss: "nll_loss"} if self.takes_log_probabilities else {}
        return {F.cross_entropy: "cross_entropy", **normalized}

    @override
    @contextmanager
    def watching(self) -> Iterator[None]:
        self.seen.clear()
        name = None if self.is_checked else type(self.technique).__name__
        with LogitsSeen(self.seen, self.losses, name, copies=self.copies):
            yield

    @override
    def term(self) -> Tensor:
        if not self.seen:
            names = list(self.losses.values())
            calls = f"calls neither {' nor '.join(names)}" if len(names) > 1 else f"doesn't call {names[0]}"
            raise SettingError(
                f"weight must be left out, because the training step {calls}, whose input "
                f"{type(self.technique).__name__} takes for the logits"
            )
        terms = [self.penalty(logits, counted) for logits, counted in self.seen]
        self.seen.clear()
        return torch.stack(terms).sum()


class LogitsSeen(TorchFunctionMode):
    """Records the logits at calls of the loss functions; everything runs unchanged.

    Args:
        logits: List for the logits, with masks of the samples that count.
        losses: Names of the loss functions, by function.
        checks_for: Name of the technique that checks what the losses take; not checked where None.
        copies: Number of copies of each sample, whose targets must be the same.
    """

    def __init__(
        self,
        logits: list[tuple[Tensor, Tensor | None]],
        losses: dict[Callable[..., Tensor], str],
        checks_for: str | None = None,
        *,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self._copies = copies
        self._checks_for = checks_for
        self._logits = logits
        self._losses = losses

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._losses and will_have_gradients():  # otherwise it is a metric
            if not torch.is_grad_enabled() and self._checks_for is not None:
                refuse_checkpointed(self._checks_for)
            given = _named(args, kwargs)
            logits, target = given["input"], given["target"]
            ignored = given.get("ignore_index", -100)
            if is_transformed(logits):
                if self._checks_for is not None:
                    refuse_transformed(logits, self._checks_for)
                return func(*args, **kwargs)
            if func is F.nll_loss and self._checks_for is not None:
                check_log_probabilities(args, kwargs, self._checks_for)
            if self._copies > 1 and self._checks_for is not None:
                _check_targets(target, self._copies, technique=self._checks_for)
            # Mixing calls a loss twice, with two targets of the same logits.
            if all(logits is not known for known, _ in self._logits):
                self._logits.append((logits, None if target.is_floating_point() else target != ignored))
        return func(*args, **kwargs)


def refuse_transformed(logits: Tensor, technique: str) -> None:
    """Raises if logits only exist within a transform of ``torch.func``, as those of one sample do in ``vmap``.

    Args:
        logits: Logits that a loss takes.
        technique: Name of the calling technique, for the error message.

    Raises:
        SettingError: If they do.
    """
    if is_transformed(logits):
        raise SettingError(
            f"the loss must be computed outside of torch.func's transforms with {technique}, which needs the logits of "
            "the whole batch"
        )


def _named(args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a loss function by name."""
    return dict(zip(("input", "target", "weight", "size_average", "ignore_index"), args, strict=False)) | kwargs


def copies_of(logits: Tensor, times: int, *, technique: str) -> tuple[Tensor, ...]:
    """Returns the logits of each copy of a batch that was repeated.

    Args:
        logits: Logits that the training step computes its loss of.
        times: Number of copies.
        technique: Name of the calling technique, for the error message.

    Raises:
        SettingError: If there aren't as many of each copy.
    """
    if len(logits) % times:
        what = "an odd number" if times == 2 else f"no multiple of {times}"
        raise SettingError(
            f"the training step must hand on the logits of all samples, in the order of the batch, so that {technique} "
            f"finds all {times} of each, but has {len(logits)}, {what}"
        )
    return logits.chunk(times)


def _check_targets(targets: Tensor, times: int, *, technique: str) -> None:
    """Raises if the copies of a batch have different targets, and so aren't in the order of the batch."""
    if torch.compiler.is_compiling() or len(targets) % times:  # which the logits are refused for
        return
    first, *others = targets.detach().chunk(times)
    rounding = 1e-2 if targets.is_floating_point() else 0.0  # a teacher's predictions may be rounded differently
    if not all(torch.allclose(copy, first, rtol=0.0, atol=rounding) for copy in others):
        raise SettingError(
            "the training step must compute its loss of each sample alone, in the order of the batch, with "
            f"{technique}, which repeats them {times} times, but copies of a sample have different targets, as in a "
            "contrastive loss, where the step itself mixes samples, or where a teacher drops units"
        )


def check_log_probabilities(args: Any, kwargs: dict[str, Any], technique: str) -> None:
    """Raises if what ``nll_loss`` takes aren't log-probabilities, as in a focal loss.

    Args:
        args: Positional arguments of the loss.
        kwargs: Keyword arguments of the loss.
        technique: Name of the calling technique, for the error message.

    Raises:
        SettingError: If the probabilities of a sample that counts don't sum to 1.
    """
    given = _named(args, kwargs)
    inputs: Tensor = given["input"]
    if torch.compiler.is_compiling() or is_transformed(inputs):
        return
    total = inputs.detach().float().logsumexp(min(inputs.ndim - 1, 1))
    counts = given["target"] != given.get("ignore_index", -100)
    if ((total.abs() > _ROUNDING) & counts).any():
        raise SettingError(
            f"nll_loss must take log-probabilities with {technique}, but takes values whose exponentials don't sum to "
            f"1, as in a focal loss, for which {technique} has no meaning"
        )
