"""What is better is read off whole words of a name."""

import pytest

from lightning_reg.core.metric_names import lower_is_better

LOWER = ["val_wer", "mape", "fid", "val/cross_entropy", "valLoss", "FID", "top1_error", "word_error_rate", "RMSE"]
HIGHER = ["accuracy", "terrain_iou", "recall", "precise", "tracer", "fidelity", "answered", "maestro", "lossless_ratio"]


@pytest.mark.parametrize(("name", "lower"), [*((name, True) for name in LOWER), *((name, False) for name in HIGHER)])
def test_direction(name, lower):
    assert lower_is_better(name) is lower
