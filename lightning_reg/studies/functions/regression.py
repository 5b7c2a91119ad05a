"""Ridge regression of a known curve, for the decomposition of its error into bias, variance and noise."""

import math
from typing import Any

import torch
from torch import Tensor

from lightning_reg.functional.measures.generalization import decompose_squared_error
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["ridge_regression"]


def ridge_regression(
    *,
    seed: int,
    degree: int = 5,
    l2: float = 0.0,
    samples: int = 30,
    noise: float = 0.3,
    datasets: int = 500,
    points: int = 200,
) -> tuple[dict[str, float], dict[str, Any]]:
    r"""Fits polynomials to many noisy samples of one curve, and decomposes their error into bias, variance and noise.

    .. math:: t(x) = \sin 2 \pi x, \quad y = t(x) + \sigma \epsilon, \quad -1 < x < 1

    The x of a data set are drawn uniformly, one from each of equally long intervals, so that they cover all of the
    curve.

    Each polynomial is the exact minimum of the mean squared error plus ``l2`` times the sum of its squared coefficients
    of Legendre polynomials, except for the constant. Errors are measured on points between -1 and 1, with new noise for
    every fit. All computations are in float64.

    Args:
        seed: Seed of data sets and noise.
        degree: Degree of the polynomials, at least 0: their capacity.
        l2: Strength of the penalty, at least 0.
        samples: Number of samples in a data set; more than ``degree`` if there is no penalty.
        noise: σ, standard deviation of the targets around the curve, at least 0.
        datasets: Number of data sets to draw and fit, at least 2.
        points: Number of points at which errors are measured.

    Returns:
        Metrics: ``test/error``, the mean squared error on noisy targets; ``bias_squared``, ``variance``, ``noise`` and
        their ``sum``; ``train/error``, the mean squared error on the fitted data; ``standardized_difference``, the
        difference between measured error and sum in standard errors, with mean 0 and standard deviation 1. And the
        decomposition as a collected result, under ``decomposition``.

    Raises:
        SettingError: If a setting is out of its range.

    >>> metrics, _ = ridge_regression(seed=0, degree=1)
    >>> metrics["bias_squared"] > metrics["variance"]
    True
    """
    check_count("degree", degree, low=0)
    check_range("l2", l2, low=0)
    check_range("noise", noise, low=0)
    check_count("datasets", datasets, low=2)
    check_count("points", points)
    check_count("samples", samples)
    if l2 == 0 and samples <= degree:
        raise SettingError(f"samples must be more than degree ({degree}) where l2 is 0, but is {samples}")
    generator = torch.Generator().manual_seed(seed)
    within = torch.rand(datasets, samples, generator=generator, dtype=torch.float64)
    inputs = (torch.arange(samples) + within) / samples * 2 - 1  # (T, samples)
    targets = _curve(inputs) + noise * _normal(inputs.shape, generator)
    where = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 - 1  # (points,)
    weights = _fits(_legendre(inputs, degree), targets, l2)  # (T, degree + 1)
    predictions = weights @ _legendre(where, degree).T  # (T, points)
    truth = _curve(where)
    observed = truth + noise * _normal(predictions.shape, generator)

    decomposition = _decomposition(predictions, truth, observed, noise)
    parts = {name: decomposition[name] for name in ("bias_squared", "variance", "noise")}
    total, error = sum(parts.values()), decomposition["error"]
    fitted = (_legendre(inputs, degree) @ weights[..., None]).squeeze(-1)
    metrics = {
        "test/error": error,
        "train/error": ((fitted - targets) ** 2).mean().item(),
        **parts,
        "sum": total,
        "standardized_difference": (error - total) / decomposition["error_standard_error"] if noise else 0.0,
    }
    return metrics, {"decomposition": decomposition}


def _decomposition(predictions: Tensor, truth: Tensor, observed: Tensor, noise: float) -> dict[str, float]:
    parts = decompose_squared_error(predictions, truth, noise**2)
    errors = (predictions - observed) ** 2
    # The rest without the two parts that depend on the fits: independent numbers with mean 0.
    scatter = errors - (predictions - truth) ** 2 - noise**2
    return {
        **{name: value.item() for name, value in parts._asdict().items()},
        "error": errors.mean().item(),
        "error_standard_error": (scatter.std() / scatter.numel() ** 0.5).item(),
    }


def _curve(x: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * x)


def _normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _legendre(x: Tensor, degree: int) -> Tensor:
    """Returns Legendre polynomials of unit norm on (-1, 1), by their recurrence: (..., degree + 1)."""
    values = [torch.ones_like(x), x]
    for n in range(1, degree):
        values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
    lengths = torch.tensor([(2 / (2 * n + 1)) ** 0.5 for n in range(degree + 1)], dtype=x.dtype)
    return torch.stack(values[: degree + 1], -1) / lengths


def _fits(features: Tensor, targets: Tensor, l2: float) -> Tensor:
    """Returns the coefficients of each data set's fit: (T, features)."""
    count = features.shape[-1]
    penalized = torch.ones(count, dtype=features.dtype)
    penalized[0] = 0
    # Least squares on the data set and one more row for each penalized coefficient, which is more precise than the
    # normal equations.
    rows = torch.diag((l2 * features.shape[-2] * penalized).sqrt()).expand(len(features), count, count)
    matrix = torch.cat([features, rows], 1)
    values = torch.cat([targets, torch.zeros(len(features), count, dtype=targets.dtype)], 1)
    solution: Tensor = torch.linalg.lstsq(matrix, values[..., None]).solution
    return solution.squeeze(-1)
