"""Penalty, clipping, constraint, Lookahead and average in one run, against one loop by hand."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_reg.callbacks import (
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientClipping,
    GradientMonitor,
    Lookahead,
    MaxNorm,
)
from tests.conformance.by_hand import averaged_or_trained, l1, l2, lookahead, max_norm, moving_average
from tests.conformance.problem import Setting, Textbook, loader, resumable_loader, textbook_loop, trainable, weights_of


def together():
    return [
        ExponentialMovingAverage(decay=0.7),
        Lookahead(k=2, alpha=0.6),
        GradientMonitor(every_n_steps=1, update_ratio=True),
        GradientClipping(max_norm=0.1),
        MaxNorm(max_norm=0.7),
        ElasticNetPenalty(l1=0.01, l2=0.05),
    ]


def after_step(model, share):
    for change in (max_norm, lookahead, moving_average):
        change(model, share)


BY_HAND = Textbook(
    term=lambda model, *_: l1(model) + l2(model),
    on_gradients=lambda model, *_: torch.nn.utils.clip_grad_norm_(trainable(model), 0.1) and None,
    after_step=after_step,
    evaluated=averaged_or_trained,
)


def fit(setting, attached, *, ckpt_path=None, **settings):
    module = setting.module()
    trainer = setting.trainer(attached, log_every_n_steps=1, **settings)
    trainer.fit(module, resumable_loader(), loader(), ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize(
    "setting", [Setting(), Setting(accumulate=4), Setting("16-mixed"), Setting("bf16-mixed")], ids=str
)
@pytest.mark.parametrize("order", [1, -1])
def test_equal_one_loop_whatever_the_order(setting, order):
    module, trainer = fit(setting, together()[::order])
    by_hand = textbook_loop(setting, BY_HAND)
    expected = by_hand.weights[-1]
    difference = max((a - b).abs().max().item() for a, b in zip(weights_of(module), expected, strict=True))
    assert difference <= setting.tolerance(by_hand.start, expected)
    if setting.precision == "32-true":
        assert trainer.callback_metrics["val_loss"].item() == pytest.approx(by_hand.val_losses[-1], abs=1e-6)


@pytest.mark.parametrize("step", [2, 5])
def test_resumed_is_uninterrupted(step, tmp_path):
    setting = Setting(accumulate=2)

    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        module, _ = fit(setting, [*together(), saves], enable_checkpointing=True, **how)
        return weights_of(module)

    whole = run()
    (tmp_path / f"step={step}.ckpt").rename(tmp_path / "start.ckpt")
    resumed = run(ckpt_path=tmp_path / "start.ckpt")
    assert all(torch.equal(*values) for values in zip(resumed, whole, strict=True))
