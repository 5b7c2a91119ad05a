"""Regression: one or several numbers per sample."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.regression import MeanAbsoluteError
from typing_extensions import override

from lightning_reg.models.metrics import CenteredR2Score, RootMeanSquaredError
from lightning_reg.models.tasks.task import Prediction, Task, columns_by_name
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = ["Regression"]


class Regression(Task):
    """One or several numbers per sample; targets are (N,) or (N, T), in a unit of their own.

    The network learns targets that are standardized by the mean and standard deviation of the training samples, which
    checkpoints keep; so one learning rate works for prices and fractions. The loss is that of the standardized targets;
    predictions and the metrics ``mae``, ``rmse`` and ``r2`` are in the targets' unit, averaged over targets.

    Args:
        loss: ``squared``, ``absolute`` (for outliers), ``huber`` (squared for errors up to ``delta``, absolute beyond),
            or ``gaussian``: the negative log-likelihood of a normal distribution, whose variance is predicted, too.
        delta: Error above which ``huber`` is absolute, in standard deviations of the target, positive.
        standardize: Whether to standardize the targets.

    Raises:
        SettingError: If a name is unknown or a number is out of range.

    Reference:
        Gaussian likelihood: David Nix, Andreas Weigend: Estimating the Mean and Variance of the Target Probability
        Distribution, ICNN 1994. Huber loss: Peter Huber: Robust Estimation of a Location Parameter, Annals of
        Mathematical Statistics 35(1), 1964.

    >>> Regression(loss="gaussian").build(num_classes=None, num_targets=2)
    4
    """

    def __init__(
        self,
        *,
        loss: Literal["squared", "absolute", "huber", "gaussian"] = "squared",
        delta: float = 1.0,
        standardize: bool = True,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, ["squared", "absolute", "huber", "gaussian"])
        check_range("delta", delta, low=0, low_open=True)
        self.kind = loss
        self.delta = delta
        self.standardize = standardize

    @override
    def build(self, *, num_classes: int | None, num_targets: int | None) -> int:
        if num_targets is None:
            raise SettingError("num_targets must be given for regression, 1 where a sample has one number, but is None")
        check_count("num_targets", num_targets)
        self.num_targets = num_targets
        self.mean: Tensor
        self.std: Tensor
        self.is_prepared: Tensor
        self.register_buffer("mean", torch.zeros(num_targets))
        self.register_buffer("std", torch.ones(num_targets))
        self.register_buffer("is_prepared", torch.tensor(False))  # saved in checkpoints with the constants
        return 2 * num_targets if self.kind == "gaussian" else num_targets

    @property
    @override
    def needs_targets(self) -> bool:
        """Whether targets are to be standardized and neither a fit nor a checkpoint has set the constants."""
        return self.standardize and not bool(self.is_prepared)

    @override
    def prepare(self, targets: Tensor) -> None:
        values = targets.double().reshape(-1, self.num_targets)
        std, mean = torch.std_mean(values, 0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, 1))
        self.is_prepared.fill_(True)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values = _aligned(outputs[:, : self.num_targets] if self.kind == "gaussian" else outputs, targets)
        wanted = (targets - self.mean) / self.std
        if self.kind == "squared":
            return F.mse_loss(values, wanted)
        if self.kind == "absolute":
            return F.l1_loss(values, wanted)
        if self.kind == "huber":
            return F.huber_loss(values, wanted, delta=self.delta)
        # Not F.gaussian_nll_loss, which waits for the device to see whether a variance is negative.
        variances = _aligned(_variances(outputs[:, self.num_targets :]), targets)
        return 0.5 * (variances.log() + (values - wanted).square() / variances).mean()

    @override
    def metrics(self) -> dict[str, Metric]:
        return {
            "mae": MeanAbsoluteError(),
            "rmse": RootMeanSquaredError(self.num_targets),
            "r2": CenteredR2Score(self._centered),
        }

    def _centered(self, values: Tensor) -> Tensor:
        return values - self.mean

    @override
    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _aligned(self._in_unit(outputs), targets), targets

    @override
    def predictions(self, outputs: Tensor) -> Tensor:
        values = self._in_unit(outputs)
        return values.squeeze(1) if values.ndim == 2 and self.num_targets == 1 else values

    def _in_unit(self, outputs: Tensor) -> Tensor:
        values = outputs[:, : self.num_targets] if self.kind == "gaussian" else outputs
        return torch.addcmul(self.mean, values.to(self.mean.dtype), self.std)

    @override
    def variances(self, outputs: Tensor) -> Tensor | None:
        if self.kind != "gaussian":
            return None
        variances = _variances(outputs[:, self.num_targets :]) * self.std.square()
        return variances.squeeze(1) if self.num_targets == 1 else variances

    @override
    def columns(self, predicted: Tensor | Prediction, names: Sequence[str]) -> dict[str, list[Any]]:
        many = [f"prediction_{name}" for name in names or range(self.num_targets)]
        return columns_by_name(predicted, ["prediction"] if self.num_targets == 1 else many)


def _variances(raw: Tensor) -> Tensor:
    return F.softplus(raw.float()) + 1e-6


def _aligned(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns outputs in the targets' shape where one is (N, 1) and the other (N,)."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        return outputs.squeeze(-1)
    if targets.ndim == outputs.ndim + 1 and targets.shape[-1] == 1:
        return outputs.unsqueeze(-1)
    return outputs
