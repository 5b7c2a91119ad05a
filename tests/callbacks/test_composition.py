"""Techniques together in one run: a few against one loop by hand, and nearly all of them resumed."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_reg.callbacks import (
    BatchMixing,
    BestWeightsEarlyStopping,
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientClipping,
    MaxNorm,
    SharpnessAwareMinimization,
)
from lightning_reg.transforms import Mixup
from tests.callbacks.foreign import Saves, assert_same
from tests.conformance.by_hand import averaged_or_trained, l1, l2, mixup, moving_average, sharpness
from tests.conformance.problem import (
    BATCHES,
    Setting,
    SomebodysModule,
    Textbook,
    loader,
    resumable_loader,
    textbook_loop,
    trainable,
    weights_of,
)


def together():
    return [
        BestWeightsEarlyStopping("val_loss", patience=100, mode="max"),  # so that the last weights aren't the best
        ExponentialMovingAverage(decay=0.7),
        GradientClipping(max_norm=0.1),
        ElasticNetPenalty(l1=0.01, l2=0.05),
        SharpnessAwareMinimization(rho=0.2),
        BatchMixing(Mixup(alpha=0.7, prob=0.8)),
    ]


def by_hand(setting):
    def penalized_and_clipped(model, step, memory):
        steps = -(-BATCHES // setting.accumulate)
        is_last = step % steps == steps - 1
        share = (BATCHES - (steps - 1) * setting.accumulate) / setting.accumulate if is_last else 1.0
        (share * (l1(model) + l2(model))).backward()
        torch.nn.utils.clip_grad_norm_(trainable(model), 0.1)

    return textbook_loop(
        setting,
        Textbook(
            mix=mixup(per_sample=False).mix,
            sharpen=sharpness(0.2),
            on_gradients=penalized_and_clipped,
            after_step=moving_average,
            evaluated=averaged_or_trained,
        ),
    )


def fit(setting, attached, *, ckpt_path=None, **settings):
    module = setting.module()
    setting.trainer(attached, **settings).fit(module, resumable_loader(), loader(), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(accumulate=4),
        Setting(compiled=True),
        Setting("bf16-mixed"),
        Setting("16-mixed", accumulate=4),
        Setting("16-mixed", fused=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("order", [1, -1])
def test_equal_one_loop_whatever_the_order(setting, order):
    module = fit(setting, together()[::order])
    loop = by_hand(setting)
    expected = loop.weights[loop.val_losses.index(max(loop.val_losses))]
    difference = max((a - b).abs().max().item() for a, b in zip(weights_of(module), expected, strict=True))
    assert difference <= setting.tolerance(loop.start, expected)


# An epoch has three. Not from the third: Lightning doesn't validate an epoch anymore that was interrupted before that,
# and here the first would be the best.
@pytest.mark.parametrize("step", [2, 4, 6])
def test_resumed_is_uninterrupted(step, tmp_path):
    def run(**how):
        saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
        best = ModelCheckpoint(tmp_path, "best", monitor="val_loss", mode="max", enable_version_counter=False)
        return weights_of(fit(Setting(accumulate=2), [*together(), saves, best], enable_checkpointing=True, **how))

    whole = run()
    (tmp_path / f"step={step}.ckpt").rename(tmp_path / "start.ckpt")
    resumed = run(ckpt_path=tmp_path / "start.ckpt")
    assert all(torch.equal(*values) for values in zip(resumed, whole, strict=True))


@pytest.mark.filterwarnings("ignore:GradientClipping had no effect")  # that of frozen weights
def test_everything_together_resumes_to_the_bit(tmp_path):
    from tests.conformance.techniques import TECHNIQUES

    def run(**settings):
        left_out = ("GradientClipping ", "MaxNorm", "UnitNorm", "NonNegative", "BestWeights", "WeightStandardization")
        # A second is refused; of two that mix, one by sample, it is warned that one doesn't see the other's partners.
        left_out += ("SharpnessAwareMinimization ", "BatchMixing per sample")
        # Of what repeats the batch or mixes within the network, and BatchMixing, one is enough.
        left_out += ("RDrop", "RegMixup", "AugmentationConsistency", "ManifoldMixup", "LabelSmoothing ")
        # What decides which weights are evaluated stands alone, of what drops weights one is enough, and a temperature
        # is found where a linear layer makes the logits.
        left_out += ("SnapshotEnsemble", "ScheduleFreeMode", "Mixout", "AdversarialTraining ", "TemperatureScaling")
        together = [
            callback
            for name, technique in TECHNIQUES.items()
            if not name.startswith(left_out) and not technique.prepare
            for callback in technique.attached()
        ]
        together += [GradientClipping(algorithm="percentile", include=("network.frozen.*",))]
        together += [MaxNorm(max_norm=0.7, exclude=("network.first.*",))]  # whose weight is spectrally normalized
        saves = Saves(tmp_path / "within.ckpt", step=8)
        module = SomebodysModule()
        trainer = Setting().trainer([*together, saves], log_every_n_steps=1)
        trainer.fit(module, resumable_loader(), loader(), **settings)
        shown = {tag: value.item() for tag, value in trainer.callback_metrics.items() if "loss" not in tag}
        return weights_of(module), shown

    whole, logged = run()
    resumed, logged_again = run(ckpt_path=tmp_path / "within.ckpt")
    assert_same(whole, resumed, atol=0)
    assert logged == logged_again
