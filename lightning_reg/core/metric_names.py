"""What the name of a metric tells."""

import re

__all__ = ["is_accuracy", "lower_is_better", "short_name"]

_SPLIT = re.compile(r"^(train|training|val|valid|validation|test)[/_]")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LOWER_IS_BETTER = frozenset(
    """
    loss losses err error errors wrong mistakes mse rmse mae mape smape wmape msle rmsle nrmse perplexity ppl nll
    entropy ce bce brier ece mce calibration wer cer mer wil ter eer fid kid lpips dists niqe divergence kl kld
    jsd distance hamming hausdorff deviance hinge cost regret crps rase ergas sam fpr fnr
    """.split()  # noqa: SIM905  # a list would take a line a word
)
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
    """Whether a metric of this name is a loss or an error: whether one of its words is the name of one.

    >>> lower_is_better("val/loss"), lower_is_better("ValWER"), lower_is_better("accuracy"), lower_is_better("tracer")
    (True, True, False, False)
    """
    return any(word.lower() in _LOWER_IS_BETTER for word in _WORD.findall(name))


def is_accuracy(name: str) -> bool:
    """Whether a metric of this name is a share of right answers.

    >>> is_accuracy("val_acc"), is_accuracy("accuracy"), is_accuracy("acceleration")
    (True, True, False)
    """
    return _ACCURACY.search(name.lower()) is not None
