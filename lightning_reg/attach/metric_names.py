"""What the name of a metric tells."""

import re

__all__ = ["is_accuracy", "lower_is_better", "short_name"]

_SPLIT = re.compile(r"^(train|training|val|valid|validation|test)[/_]")
_LOWER_IS_BETTER = re.compile("loss|err|mse|mae|perplexity|nll|entropy|brier|ece")
_ACCURACY = re.compile(r"(^|[^a-z])acc(uracy)?([^a-z]|$)")


def short_name(name: str) -> str:
    """Returns a metric's name without what says the split.

    Args:
        name: As it is logged.

    >>> short_name("val/loss"), short_name("valid_acc"), short_name("f1")
    ('loss', 'acc', 'f1')
    """
    return _SPLIT.sub("", name)


def lower_is_better(name: str) -> bool:
    """Whether a metric of this name is a loss or an error.

    Args:
        name: Of the metric.

    >>> lower_is_better("val/loss"), lower_is_better("accuracy")
    (True, False)
    """
    return _LOWER_IS_BETTER.search(name.lower()) is not None


def is_accuracy(name: str) -> bool:
    """Whether a metric of this name is a share of right answers.

    Args:
        name: Of the metric.

    >>> is_accuracy("val_acc"), is_accuracy("accuracy"), is_accuracy("acceleration")
    (True, True, False)
    """
    return _ACCURACY.search(name.lower()) is not None
