"""Properties of a metric that follow from its name."""

import re

__all__ = ["higher_is_better", "is_accuracy", "lower_is_better", "short_name"]

_SPLIT = re.compile(r"^(train|training|val|valid|validation|test)[/_]")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LOWER_IS_BETTER = frozenset(
    """
    loss losses err error errors wrong mistakes mse rmse mae mape smape wmape msle rmsle nrmse perplexity ppl nll
    entropy ce bce brier ece mce calibration wer cer mer wil ter eer fid kid lpips dists niqe divergence kl kld
    jsd distance hamming hausdorff deviance hinge cost regret crps rase ergas sam fpr fnr
    """.split()  # noqa: SIM905  # a list would take a line a word
)
_WORD_OR_NUMBER = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*")
_HIGHER_IS_BETTER = frozenset(
    """
    acc accuracy f1 fbeta auc auroc auprc ap map precision recall sensitivity specificity tpr tnr r2 psnr ssim iou
    miou jaccard dice kappa mcc matthews bleu rouge meteor correct ndcg mrr pearson spearman snr sdr pesq stoi
    """.split()  # noqa: SIM905  # a list would take a line a word
)
_ACCURACY = re.compile(r"(^|[^a-z])acc(uracy)?([^a-z]|$)")


def short_name(name: str) -> str:
    """Returns a metric's name without the prefix of its split.

    >>> short_name("val/loss"), short_name("valid_acc"), short_name("f1")
    ('loss', 'acc', 'f1')
    """
    return _SPLIT.sub("", name)


def lower_is_better(name: str) -> bool:
    """Whether a metric is a loss or an error, judged by the words of its name.

    >>> lower_is_better("val/loss"), lower_is_better("ValWER"), lower_is_better("accuracy"), lower_is_better("tracer")
    (True, True, False, False)
    """
    return any(word.lower() in _LOWER_IS_BETTER for word in _WORD.findall(name))


def higher_is_better(name: str) -> bool:
    """Whether higher is surely better: a word of the metric's name says so, and none says the opposite.

    >>> [higher_is_better(name) for name in ("val/accuracy", "valid_F1", "loss", "f1_loss", "vaccination", "speed")]
    [True, True, False, False, False, False]
    """
    words = {word.lower() for word in _WORD_OR_NUMBER.findall(name)}
    return bool(words & _HIGHER_IS_BETTER) and not lower_is_better(name)


def is_accuracy(name: str) -> bool:
    """Whether a metric is an accuracy, judged by its name.

    >>> is_accuracy("val_acc"), is_accuracy("accuracy"), is_accuracy("acceleration")
    (True, True, False)
    """
    return _ACCURACY.search(name.lower()) is not None
