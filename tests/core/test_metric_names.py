"""What is better is read off whole words of a name."""

import pytest

from lightning_reg.core.metric_names import higher_is_better, lower_is_better

LOWER = ["val_wer", "mape", "fid", "val/cross_entropy", "valLoss", "FID", "top1_error", "word_error_rate", "RMSE"]
HIGHER = ["accuracy", "terrain_iou", "recall", "precise", "tracer", "fidelity", "answered", "maestro", "lossless_ratio"]


@pytest.mark.parametrize(("name", "lower"), [*((name, True) for name in LOWER), *((name, False) for name in HIGHER)])
def test_direction(name, lower):
    assert lower_is_better(name) is lower


SURELY_HIGHER = ["val/accuracy", "val_acc", "valF1", "AUROC", "top5_acc", "r2", "macro_f1", "terrain_iou", "val/map"]
NOT_SURELY = ["accuracy_error", "f1_loss", "vaccination", "throughput", "remap", "score", "trace", "mape"]


@pytest.mark.parametrize("name", SURELY_HIGHER)
def test_what_is_surely_better_where_it_is_higher(name):
    assert higher_is_better(name)
    assert not lower_is_better(name)


@pytest.mark.parametrize("name", NOT_SURELY)
def test_of_what_is_not_sure_nothing_is_said(name):
    assert not higher_is_better(name)
