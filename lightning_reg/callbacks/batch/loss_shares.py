"""How much the values of torch's losses count in the loss of a training step: as parts of a mean, or of a sum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.callbacks.batch.weighted_losses import LOSSES, counts_in_mean, settings_of
from lightning_reg.core.hooks import is_transformed
from lightning_reg.settings import SettingError

__all__ = ["LossShares", "refuse_mean_beside_sum"]


@dataclass(frozen=True)
class _Call:
    """A call of a loss function.

    Attributes:
        counts: How much each value counts in the loss's mean, (N, ...).
        width: Number of columns of the input, such as that of classes; 0 where there are none.
    """

    result: Tensor
    counts: Tensor
    is_mean: bool
    width: int


class LossShares(TorchFunctionMode):
    """Records calls of torch's loss functions; everything runs unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[_Call] = []

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in LOSSES and result.requires_grad and not is_transformed(result):  # otherwise it is a metric
            settings = settings_of(kwargs)
            with torch.no_grad(), torch._C.DisableTorchFunction():  # others, that mix losses, mustn't see a second one
                values = func(*args, **{**settings, "reduction": "none"})
                counts = counts_in_mean(func, values, args, kwargs)
            shape = (args[0] if args else kwargs["input"]).shape
            width = shape[1] if len(shape) > 1 else 0
            self._calls.append(_Call(result, counts, settings.get("reduction", "mean") in ("mean", "batchmean"), width))
        return result

    def widths(self, count: int) -> list[int]:
        """Returns the number of columns of the inputs of the losses that have a given number of rows."""
        return [call.width for call in self._calls if call.counts.shape[:1] == (count,)]

    @property
    def are_means(self) -> bool:
        """Whether every loss was a mean over samples."""
        return all(call.is_mean for call in self._calls)

    def of_all(self, loss: Tensor) -> Tensor:
        """Returns how much the values of all losses count in a loss, ()."""
        of_values = self.of_values(loss)
        return self.of_means(loss) + (0 if of_values is None else of_values.abs())

    def of_means(self, loss: Tensor) -> Tensor:
        """Returns how much the results of losses that are means count in a loss, ()."""
        calls = [call for call in self._calls if call.is_mean]
        return sum((gradient.abs() for gradient in _gradients(loss, calls)), loss.new_zeros(()))

    def of_values(self, loss: Tensor, count: int | None = None) -> Tensor | None:
        """Returns how much the values of losses that aren't means count in a loss, for each row, (N,).

        Args:
            loss: Loss that the training step returns.
            count: Number of rows of the losses to look at; None for the sum over all rows of all losses, ().

        Returns:
            The sum over losses; None where there are none.
        """
        calls = [call for call in self._calls if not call.is_mean]
        calls = [call for call in calls if count is None or call.counts.shape[:1] == (count,)]
        shares = [call.counts * gradient for call, gradient in zip(calls, _gradients(loss, calls), strict=True)]
        rows = [share.sum() if count is None else share.reshape(count, -1).sum(1) for share in shares]
        return torch.stack(rows).sum(0) if rows else None


def _gradients(loss: Tensor, calls: list[_Call]) -> list[Tensor]:
    if not calls or not loss.requires_grad:
        return [torch.zeros_like(call.result) for call in calls]
    results = [call.result for call in calls]
    with torch._C.DisableTorchFunction():
        found = torch.autograd.grad(loss.sum(), results, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(result) if gradient is None else gradient.detach()
        for result, gradient in zip(results, found, strict=True)
    ]


def refuse_mean_beside_sum(shares: LossShares, loss: Tensor, name: str) -> None:
    """Raises if a loss that has a sum over samples also has a mean.

    Args:
        name: Name of the technique or setting, for the error message.
    """
    if bool(shares.of_means(loss)):
        raise SettingError(
            f"reduction must be the same in all losses that training_step adds up with {name}, which changes the "
            "number of samples, but beside a mean over samples there is a sum; use means"
        )
