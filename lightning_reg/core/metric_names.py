"""Properties of a metric that follow from its name."""

import re
from collections.abc import Iterable
from typing import Literal

__all__ = ["better_mode", "higher_is_better", "is_accuracy", "lower_is_better", "short_name", "short_names"]

_SPLIT = re.compile(r"^(train|training|val|valid|validation|test)[/_]")
_WORD = re.compile(r"[A-Z]{2,}s(?![a-z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|@")  # `NLLs` is one word


def _any_of(names: str) -> re.Pattern[str]:
    """Returns a pattern of names, each one word or several, that finds them whole among words joined by ``_``.

    The plural is found, too.
    """
    return re.compile(rf"(?<![^_])({'|'.join(names.split())})s?(?![^_])")


# What is an error whatever stands beside it: `f1_loss`, `accuracy_error`.
_LOSSES = _any_of(
    """
    loss losses logloss (mse|mae|bce|ce|nll|kl|val|train|test|total)loss err error(?!_free)
    (jaccard|correlation)_distance learned_perceptual_image_patch_similarity
    (image_)?structure_and_texture_similarity
    """
)
_ERRORS = _any_of(
    """
    wrong incorrect mistake mse rmse mae mape smape wmape wape msle rmsle nmse nmae nrmse mase rmsse rmsd perplexity
    perplexities ppl nll bpd bpc bits_per entropy crossentropy xent ce bce brier ece mce calibration wer cer mer wil
    der ter eer eed word_info_lost edit_rate fid kid lpips dists niqe piqe brisque divergence kl kld jsd distance
    hamming hausdorff deviance disparity (spatial|cepstral)_distortion hinge cost regret crps
    ranked_probability_score rase ergas sam spectral_angle total_variation pinball logcosh log_cosh residual
    misclassification misclassified miss_rate false_(positive|negative) fpr fnr fall_?out mean_rank l_[12] smoothl_1
    (abs|sq)_rel (neg|negative)_(log_likelihood|likelihood|elbo) nelbo epe mpjpe chamfer emd wasserstein mmd ade fde
    """
)
# What is a quality though an error stands beside it: `hamming_accuracy`.
_CLEAR = """
    acc accuracy accuracies f_1 fbeta auc auroc auprc recall precision sensitivity specificity tpr tnr r_2 psnr ssim iou
    miou intersection_over_union jaccard kappa mcc matthews bleu ndcg mrr pearson spearman skill explained
"""
_QUALITIES = _any_of(f"{_CLEAR} correlation")
_HIGHER_IS_BETTER = _any_of(f"{_CLEAR} ap map dice rouge meteor correct snr sdr pesq stoi")
_LAST_IS_QUALITY = re.compile(rf"{_HIGHER_IS_BETTER.pattern}$")  # the noun: `ade_dice`, but not `dice_ce`
_ACCURACY = re.compile(r"(^|[^a-z])acc(uracy)?([^a-z]|$)")


def short_name(name: str) -> str:
    """Returns a metric's name without the prefix of its split.

    >>> short_name("val/loss"), short_name("valid_acc"), short_name("f1")
    ('loss', 'acc', 'f1')
    """
    return _SPLIT.sub("", name)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the short name of each metric; those that only their split tells apart are numbered.

    The metric of an evaluation comes first, and that of training last, which an evaluation has where it calls the
    training step.

    >>> short_names(["train_loss", "loss", "val_loss", "val_acc"])
    {'train_loss': 'loss_3', 'loss': 'loss_2', 'val_loss': 'loss', 'val_acc': 'acc'}
    """
    given, taken = list(names), dict[str, str]()

    def place(name: str) -> int:
        split = _SPLIT.match(name)
        return 1 if split is None else 2 * split[1].startswith("train")

    for name in sorted(given, key=place):
        short, number = short_name(name), 1
        while short in taken:
            number += 1
            short = f"{short_name(name)}_{number}"
        taken[short] = name
    shorts = {name: short for short, name in taken.items()}
    return {name: shorts[name] for name in given}


def _words(name: str) -> str:
    """Returns the words and numbers of a name, joined by ``_``.

    >>> _words("val/minADE"), _words("top1Error"), _words("TPR@FPR=0.01")
    ('val_min_ade', 'top_1_error', 'tpr_at_fpr_0_01')
    """
    return "_".join("at" if word == "@" else word.lower() for word in _WORD.findall(name))


def lower_is_better(name: str) -> bool:
    """Whether a metric is a loss or an error, judged by the words of its name.

    >>> lower_is_better("val/loss"), lower_is_better("ValWER"), lower_is_better("accuracy"), lower_is_better("tracer")
    (True, True, False, False)
    >>> lower_is_better("neg_log_likelihood"), lower_is_better("log_likelihood")
    (True, False)
    >>> lower_is_better("hamming_distance"), lower_is_better("hamming_accuracy"), lower_is_better("accuracy_loss")
    (True, False, True)
    >>> lower_is_better("fpr_at_tpr"), lower_is_better("tpr_at_fpr")
    (True, False)
    >>> lower_is_better("TranslationEditRate"), lower_is_better("DistanceIntersectionOverUnion")
    (True, False)
    """
    words = _words(name).partition("_at_")[0]  # what follows is where it is measured
    is_quality = _QUALITIES.search(words) or _LAST_IS_QUALITY.search(words)
    return bool(_LOSSES.search(words) or (_ERRORS.search(words) and not is_quality))


def higher_is_better(name: str) -> bool:
    """Whether higher is surely better: a word of the metric's name says so, and none says the opposite.

    >>> [higher_is_better(name) for name in ("val/accuracy", "valid_F1", "loss", "f1_loss", "vaccination", "speed")]
    [True, True, False, False, False, False]
    """
    words = _words(name)
    return bool(_HIGHER_IS_BETTER.search(words)) and not (_LOSSES.search(words) or _ERRORS.search(words))


def better_mode(name: str) -> Literal["min", "max"] | None:
    """Returns the mode that a metric's name asks for: ``"min"`` of a loss, ``"max"`` of a quality; None if unclear.

    >>> better_mode("val_loss"), better_mode("val_acc"), better_mode("speed")
    ('min', 'max', None)
    """
    return "max" if higher_is_better(name) else "min" if lower_is_better(name) else None


def is_accuracy(name: str) -> bool:
    """Whether a metric is an accuracy, judged by its name.

    >>> is_accuracy("val_acc"), is_accuracy("accuracy"), is_accuracy("acceleration")
    (True, True, False)
    """
    return _ACCURACY.search(name.lower()) is not None
