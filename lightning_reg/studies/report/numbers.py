"""Formatting of numbers for human readers."""

import math

from lightning_reg.core.metric_names import is_accuracy
from lightning_reg.studies.statistics import Comparison

__all__ = ["difference_in_words", "factor_of", "gap_in_words", "number", "p_value", "readable"]


def readable(metric: str) -> str:
    """Returns a metric's name in readable form.

    Args:
        metric: Name of the metric, with or without the split.

    >>> readable("test/accuracy"), readable("bias_squared")
    ('test accuracy', 'bias squared')
    """
    return metric.replace("/", " ").replace("_", " ")


def factor_of(metric: str) -> float:
    """Returns the factor by which values of a metric are multiplied for display: 100 for accuracies, else 1.

    Args:
        metric: Name of the metric, with or without the split.
    """
    return 100 if is_accuracy(metric) else 1


def number(metric: str, value: float, error: float = math.nan) -> str:
    """Formats a value with its standard error, accuracies in percent.

    Args:
        metric: Name of the metric.
        value: Value of the metric; NaN if there is none.
        error: Standard error of the value; NaN if there is none.

    >>> number("test/accuracy", 0.98765, 0.0012), number("test/loss", 0.123456)
    ('98.77 ± 0.12 %', '0.1235')
    """
    if math.isnan(value):
        return "–"
    if is_accuracy(metric):
        value, error, unit = factor_of(metric) * value, factor_of(metric) * error, " %"
        shown = [f"{value:.2f}"] if math.isnan(error) else [f"{value:.2f}", f"{error:.2f}"]
    else:
        unit = ""
        shown = [f"{value:.4g}"] if math.isnan(error) else [f"{value:.4g}", f"{error:.2g}"]
    return (" ± ".join(shown) + unit).replace("-", "−")


def difference_in_words(metric: str, comparison: Comparison) -> str:
    """Formats a difference with its sign and standard error, for accuracies in percentage points.

    Args:
        metric: Name of the metric.
        comparison: Comparison that has the difference.

    >>> difference_in_words("test/accuracy", Comparison("none", 5, -0.0123, 0.004, 0.03))
    '−1.23 ± 0.40'
    """
    if math.isnan(comparison.difference):
        return "–"
    return ("+" if comparison.difference > 0 else "") + gap_in_words(metric, comparison.difference, comparison.error)


def gap_in_words(metric: str, value: float, error: float) -> str:
    """Formats a gap with its standard error, for accuracies in percentage points.

    Args:
        metric: Name of the metric.
        value: Value of the gap.
        error: Standard error of the gap; NaN if there is none.

    >>> gap_in_words("loss", -0.1234, 0.0123)
    '−0.123 ± 0.012'
    """
    value, error = factor_of(metric) * value, factor_of(metric) * error
    shown = f"{value:.2f}" if is_accuracy(metric) else f"{value:.3g}"
    scatter = "" if math.isnan(error) else f" ± {error:.2f}" if is_accuracy(metric) else f" ± {error:.2g}"
    return shown.replace("-", "−") + scatter


def p_value(p: float) -> str:
    """Formats a p-value.

    Args:
        p: P-value in [0, 1]; NaN if there is none.

    >>> p_value(0.0004), p_value(0.0213), p_value(float("nan"))
    ('< .001', '.021', '–')
    """
    if math.isnan(p):
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"
