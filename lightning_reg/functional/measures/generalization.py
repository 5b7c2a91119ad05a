"""Bias, variance and noise of a kind of model, estimated from several models of that kind."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.settings import SettingError, check_range

__all__ = ["SquaredErrorParts", "ZeroOneParts", "decompose_squared_error", "decompose_zero_one_error"]


class SquaredErrorParts(NamedTuple):
    """Parts of the expected squared error, which is their sum.

    Attributes:
        bias_squared: Squared distance of the mean prediction from the truth, mean over samples.
        variance: Variance of the predictions around their mean, mean over samples.
        noise: Variance of the targets around the truth, which no model can predict.
    """

    bias_squared: Tensor
    variance: Tensor
    noise: Tensor


class ZeroOneParts(NamedTuple):
    """Parts of the expected share of wrong answers, which is bias + unbiased variance - biased variance.

    Attributes:
        bias: Share of samples for which the answer of most models is wrong.
        unbiased_variance: Share of models that differ from that answer where it is right, which adds errors.
        biased_variance: Share of models that are right where that answer is wrong, which removes errors. With two
            classes this is the share of models that differ from it.
        error: Share of wrong answers of all models.
    """

    bias: Tensor
    unbiased_variance: Tensor
    biased_variance: Tensor
    error: Tensor

    @property
    def variance(self) -> Tensor:
        """Net contribution of variance to the error; negative where it removes more errors than it adds."""
        return self.unbiased_variance - self.biased_variance


def decompose_squared_error(predictions: Tensor, truth: Tensor, noise: float = 0.0) -> SquaredErrorParts:
    r"""Decomposes the expected squared error of a kind of model, from models fitted to different samples.

    .. math::
        E (f(x) - y)^2 = \underbrace{(E f(x) - t(x))^2}_\text{bias²}
        + \underbrace{E (f(x) - E f(x))^2}_\text{variance} + \underbrace{E (y - t(x))^2}_\text{noise}

    The expectation over T models is estimated without bias: variance with T - 1, and bias² as the squared distance of
    the mean prediction minus the variance of that mean, variance / T. So bias² may be estimated negative where it is
    small, and bias² + variance is exactly the mean squared distance of predictions and truth.

    Args:
        predictions: (T, N), floats predicted by T ≥ 2 models, each fitted to its own sample.
        truth: (N,), mean t(x) of the targets.
        noise: Variance of the targets around their mean, at least 0.

    Returns:
        Scalars.

    Raises:
        SettingError: If shapes don't match or there are fewer than two models.

    Reference:
        Stuart Geman, Elie Bienenstock, René Doursat: Neural Networks and the Bias/Variance Dilemma, Neural Computation
        4, 1992.

    >>> decompose_squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([5.0]), noise=0.5)
    SquaredErrorParts(bias_squared=tensor(8.), variance=tensor(2.), noise=tensor(0.5000))
    """
    _check(predictions, truth, "truth")
    check_range("noise", noise, low=0)
    if not predictions.is_floating_point():
        raise SettingError(f"predictions must be floats, but are {predictions.dtype}")
    variance = predictions.var(0)
    distance = (predictions.mean(0) - truth) ** 2
    bias_squared = (distance - variance / len(predictions)).mean()
    return SquaredErrorParts(bias_squared, variance.mean(), torch.as_tensor(noise, dtype=predictions.dtype))


def decompose_zero_one_error(predictions: Tensor, targets: Tensor) -> ZeroOneParts:
    r"""Decomposes the expected share of wrong answers of a kind of model, as Domingos does.

    With the main prediction m, the mode over models (the smallest one in case of ties):

    .. math::
        P(f \ne t) = [m \ne t] + [m = t] \, P(f \ne m) - [m \ne t] \, P(f = t)

    Variance adds errors where the main prediction is right, and removes some where it is wrong. This holds for every
    sample, whatever the number of classes. Targets are treated as the truth: their noise counts as bias.

    Args:
        predictions: (T, N), integer classes predicted by T ≥ 2 models, each fitted to its own sample.
        targets: (N,), the right classes.

    Returns:
        Scalars in float64, means over the samples.

    Raises:
        SettingError: If shapes don't match or there are fewer than two models.

    Reference:
        Pedro Domingos: A Unified Bias-Variance Decomposition for Zero-One and Squared Loss, AAAI 2000.

    >>> parts = decompose_zero_one_error(torch.tensor([[0, 1], [0, 1], [1, 0]]), torch.tensor([0, 0]))
    >>> parts.bias, parts.unbiased_variance, parts.biased_variance, parts.error
    (tensor(0.5000, ...), tensor(0.1667, ...), tensor(0.1667, ...), tensor(0.5000, ...))
    """
    _check(predictions, targets, "targets")
    main = predictions.mode(0).values
    is_right = (predictions == targets).double()
    is_biased = main != targets
    differs = (predictions != main).double().mean(0)
    zero = torch.zeros_like(differs)
    return ZeroOneParts(
        is_biased.double().mean(),
        torch.where(is_biased, zero, differs).mean(),
        torch.where(is_biased, is_right.mean(0), zero).mean(),
        1 - is_right.mean(),
    )


def _check(predictions: Tensor, targets: Tensor, name: str) -> None:
    if predictions.ndim != 2 or len(predictions) < 2:
        raise SettingError(f"predictions must be (T, N) of T ≥ 2 models, but have shape {tuple(predictions.shape)}")
    if targets.shape != predictions.shape[1:]:
        raise SettingError(f"{name} must have shape {tuple(predictions.shape[1:])}, but has {tuple(targets.shape)}")
