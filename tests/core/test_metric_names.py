"""What is better is read off whole words of a name."""

import importlib
import re

import pytest

from lightning_reg.core.metric_names import higher_is_better, lower_is_better

LOWER = ["val_wer", "mape", "fid", "val/cross_entropy", "valLoss", "FID", "top1_error", "word_error_rate", "RMSE"]
LOWER += """
    neg_log_likelihood negative_log_likelihood NegLogLikelihood logloss log_loss crossentropy xent neg_elbo nelbo bpd
    bpc bits_per_dim misclassification_rate miss_rate false_positive_rate false_negative_rate val_mseloss bceloss celoss
    logcosh log_cosh pinball epe mpjpe chamfer emd wasserstein mmd ade fde minADE minFDE5 mase l1 L2 rel_l2 SmoothL1
    smooth_l1 abs_rel AbsRel residual mean_rank accuracy_error f1_loss loss_iou recall_loss acc_loss_head dice_ce
    valloss perplexities NLLs val_MSEs incorrect RMSSE der TranslationEditRate word_info_lost total_variation
    learned_perceptual_image_patch_similarity ContinuousRankedProbabilityScore fallout FallOut
    fpr_at_95_tpr FPR@95TPR error_at_recall jaccard_distance correlation_distance saliency_map_mae fpr95 wer2
""".split()  # noqa: SIM905
HIGHER = ["accuracy", "terrain_iou", "recall", "precise", "tracer", "fidelity", "answered", "maestro", "lossless_ratio"]
HIGHER += """
    hamming_accuracy kl_accuracy val_accuracy_ce tpr_at_fpr TPR@FPR=0.01 recall_at_fpr precision@fpr error_free_rate
    distance_correlation log_likelihood elbo mean_reciprocal_rank accuracy_at_best_loss lower slower_rate residual_psnr
    DistanceIntersectionOverUnion signal_distortion_ratio brier_skill_score deviance_explained mAPs patch_similarity
    tactful gloss l1_iou accuracy_at_distance_5 true_negative_rate negative_recall look_at_this
    ade_dice score_at_min_loss value_at_lowest_error ade20k_miou ce_dice
""".split()  # noqa: SIM905


@pytest.mark.parametrize(("name", "lower"), [*((name, True) for name in LOWER), *((name, False) for name in HIGHER)])
def test_direction(name, lower):
    assert lower_is_better(name) is lower


def metrics_of_torchmetrics():
    """Yields the names of its classes, whole and in words, and whether higher is better."""
    unclear = {"BinaryFairness", "BinaryGroupStatRates", "WordInfoPreserved"}  # two tables, and a slip
    rooms = ("classification", "image", "regression", "retrieval", "text", "detection", "clustering", "nominal")
    for room in ("", *(f".{room}" for room in rooms)):
        for name, kind in vars(importlib.import_module(f"torchmetrics{room}")).items():
            better = getattr(kind, "higher_is_better", None)
            if isinstance(kind, type) and isinstance(better, bool) and name not in unclear:
                yield name, better
                yield re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower(), better


@pytest.mark.parametrize(("name", "better"), sorted(set(metrics_of_torchmetrics())))
def test_names_of_torchmetrics_say_what_its_classes_say(name, better):
    assert lower_is_better(name) is not better


SURELY_HIGHER = ["val/accuracy", "val_acc", "valF1", "AUROC", "top5_acc", "r2", "macro_f1", "terrain_iou", "val/map"]
NOT_SURELY = ["accuracy_error", "f1_loss", "vaccination", "throughput", "remap", "score", "trace", "mape"]
NOT_SURELY += ["hamming_accuracy", "tpr_at_fpr", "fpr_at_tpr", "correlation", "neg_log_likelihood", "error_free_rate"]


@pytest.mark.parametrize("name", SURELY_HIGHER)
def test_what_is_surely_better_where_it_is_higher(name):
    assert higher_is_better(name)
    assert not lower_is_better(name)


@pytest.mark.parametrize("name", NOT_SURELY)
def test_of_what_is_not_sure_nothing_is_said(name):
    assert not higher_is_better(name)
