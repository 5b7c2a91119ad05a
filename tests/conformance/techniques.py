"""Every technique, and what a textbook would write for it: in ``by_hand`` or in the technique's own test.

A technique that is in neither fails the suite.
"""

import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from lightning_reg.callbacks import (
    ActivationStats,
    ActivityPenalty,
    BatchImages,
    BatchMixing,
    BestWeightsEarlyStopping,
    ConcreteDropoutPenalty,
    ConfidencePenalty,
    DropoutSchedule,
    ElasticNetPenalty,
    ExponentialMovingAverage,
    FreezeBatchNorm,
    GeneralizationGap,
    GradientCentralization,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    GroupLassoPenalty,
    InsertDropBlock,
    InsertDropConnect,
    InsertDropout,
    InsertStochasticDepth,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    Lookahead,
    MaxNorm,
    NonNegative,
    OrthogonalPenalty,
    RegularizationAudit,
    ReplaceNorm,
    SharpnessAwareMinimization,
    SpectralNormalization,
    StochasticWeightAverage,
    StrengthSchedule,
    UnitNorm,
    WeightDistribution,
    WeightStandardization,
)
from lightning_reg.transforms import Mixup
from tests.conformance.by_hand import (
    Standardized,
    activity,
    at_every_second_step,
    averaged_or_trained,
    batch_norm,
    centralize,
    clip_adaptively,
    clip_by_percentile,
    clip_by_zscore,
    clip_value,
    concrete_head,
    concrete_term,
    confidence,
    dropped_blocks,
    dropped_features,
    dropped_weights,
    friendly_sharpness,
    frozen_batch_norm,
    group_lasso,
    group_soft_threshold,
    l1,
    l2,
    l2_sp,
    lookahead,
    map_of_features,
    max_norm,
    mean_of_last_epochs,
    mixup,
    moving_average,
    noise,
    orthogonal,
    sharpness,
    sharpness_of_norms,
    sharpness_of_the_hardest,
    signs,
    skipped_activation,
    soft_threshold,
    spectral_norm,
    spread,
)
from tests.conformance.problem import EPOCHS, Textbook, matrices, trainable
from tests.conformance.technique import OFF, UNRUN, UNTRAINED, Technique, penalty
from tests.helpers import PACKAGE

if PACKAGE == "pytorch_lightning":
    from lightning_reg.pytorch_lightning import BestWeightsEarlyStopping

TECHNIQUES = {
    "L1Penalty": Technique(lambda: L1Penalty(weight=0.01), lambda: L1Penalty(weight=0.0), penalty(l1)),
    "L1Penalty proximal": Technique(
        lambda: L1Penalty(weight=0.05, proximal=True),
        lambda: L1Penalty(weight=0.0, proximal=True),
        Textbook(after_step=soft_threshold),
    ),
    "L2Penalty": Technique(lambda: L2Penalty(weight=0.05), lambda: L2Penalty(weight=0.0), penalty(l2)),
    "ElasticNetPenalty": Technique(
        lambda: ElasticNetPenalty(l1=0.01, l2=0.05),
        lambda: ElasticNetPenalty(l1=0.01, l2=0.05, schedule=OFF),
        penalty(lambda model: l1(model) + l2(model)),
    ),
    "ElasticNetPenalty proximal": Technique(
        lambda: ElasticNetPenalty(l1=0.05, l2=0.05, proximal=True),
        lambda: ElasticNetPenalty(l1=0.05, l2=0.05, proximal=True, schedule=OFF),
        Textbook(term=lambda model, *_: l2(model), after_step=soft_threshold),
    ),
    "GroupLassoPenalty": Technique(
        lambda: GroupLassoPenalty(weight=0.01, group="input"),
        lambda: GroupLassoPenalty(weight=0.0, group="input"),
        penalty(group_lasso),
    ),
    "GroupLassoPenalty proximal": Technique(
        lambda: GroupLassoPenalty(weight=0.02, proximal=True),
        lambda: GroupLassoPenalty(weight=0.0, proximal=True),
        Textbook(after_step=group_soft_threshold),
    ),
    "OrthogonalPenalty": Technique(
        lambda: OrthogonalPenalty(weight=0.02), lambda: OrthogonalPenalty(weight=0.0), penalty(orthogonal)
    ),
    "L2SPPenalty": Technique(lambda: L2SPPenalty(weight=0.05), lambda: L2SPPenalty(weight=0.0), penalty(l2_sp)),
    "ActivityPenalty": Technique(
        lambda: ActivityPenalty(l1=0.1, l2=0.2, temporal=0.3),
        lambda: ActivityPenalty(l1=0.1, l2=0.2, temporal=0.3, schedule=OFF),
        Textbook(term=activity),
    ),
    "ConfidencePenalty": Technique(
        lambda: ConfidencePenalty(weight=0.3), lambda: ConfidencePenalty(weight=0.0), Textbook(term=confidence)
    ),
    "GradientClipping": Technique(
        lambda: GradientClipping(max_norm=0.1, exclude=UNTRAINED),
        lambda: GradientClipping(max_norm=1e9),
        Textbook(on_gradients=lambda model, *_: torch.nn.utils.clip_grad_norm_(trainable(model), 0.1) and None),
        second=lambda: GradientClipping(max_norm=1e9, include=UNTRAINED),
        clips=True,
    ),
    "GradientClipping value": Technique(
        lambda: GradientClipping(algorithm="value", max_value=0.05, exclude=UNTRAINED),
        lambda: GradientClipping(algorithm="value", max_value=1e9),
        Textbook(on_gradients=clip_value),
        second=lambda: GradientClipping(algorithm="value", include=UNTRAINED),
        clips=True,
    ),
    "GradientClipping adaptive": Technique(
        lambda: GradientClipping(algorithm="adaptive", clip_factor=0.05, exclude=UNTRAINED),
        lambda: GradientClipping(algorithm="adaptive", clip_factor=1e9),
        Textbook(on_gradients=clip_adaptively),
        second=lambda: GradientClipping(algorithm="adaptive", include=UNTRAINED),
        clips=True,
    ),
    "GradientClipping percentile": Technique(
        lambda: GradientClipping(algorithm="percentile", percentile=30, exclude=UNTRAINED),
        lambda: GradientClipping(algorithm="percentile", percentile=100),
        Textbook(on_gradients=clip_by_percentile),
        second=lambda: GradientClipping(algorithm="percentile", include=UNTRAINED),
        clips=True,
    ),
    "GradientClipping zscore": Technique(
        lambda: GradientClipping(algorithm="zscore", z_threshold=0.5, alpha=0.9, warmup_steps=2, exclude=UNTRAINED),
        lambda: GradientClipping(algorithm="zscore", z_threshold=1e9),
        Textbook(on_gradients=clip_by_zscore),
        second=lambda: GradientClipping(algorithm="zscore", include=UNTRAINED),
        clips=True,
    ),
    "GeneralizationGap": Technique(GeneralizationGap, lambda: GeneralizationGap(every_n_epochs=100, verbose=False)),
    "GradientMonitor": Technique(
        lambda: GradientMonitor(every_n_steps=1, layers=("*",), update_ratio=True), GradientMonitor
    ),
    "ActivationStats": Technique(
        lambda: ActivationStats(every_n_steps=1, quantiles=(0.5,), window=2, validation=True), ActivationStats
    ),
    "WeightDistribution": Technique(
        lambda: WeightDistribution(every_n_steps=1, gradients=True, updates=True, stable_rank=True, by_type=True),
        WeightDistribution,
    ),
    "GradientNoise": Technique(
        lambda: GradientNoise(seed=3), lambda: GradientNoise(eta=0.0), Textbook(on_gradients=noise)
    ),
    "GradientNoise of signs": Technique(
        lambda: GradientNoise(distribution="rademacher", seed=3),
        lambda: GradientNoise(eta=0.0, distribution="rademacher"),
        Textbook(on_gradients=signs),
    ),
    "GradientCentralization": Technique(
        GradientCentralization, lambda: GradientCentralization(include=UNTRAINED), Textbook(on_gradients=centralize)
    ),
    "BatchMixing": Technique(
        lambda: BatchMixing(Mixup(alpha=0.7, prob=0.8)), lambda: BatchMixing(Mixup(prob=0.0)), mixup(per_sample=False)
    ),
    "BatchMixing per sample": Technique(
        lambda: BatchMixing(Mixup(alpha=0.7, prob=0.8, per_sample=True)),
        lambda: BatchMixing(Mixup(), epochs=0),
        mixup(per_sample=True),
    ),
    "ConcreteDropoutPenalty": Technique(
        ConcreteDropoutPenalty,
        lambda: ConcreteDropoutPenalty(schedule=OFF),
        penalty(concrete_term),
        prepare=concrete_head,
    ),
    "InsertDropout": Technique(
        lambda: InsertDropout(p=0.4, include=("network.act",), seed=3),
        lambda: InsertDropout(p=0.0, include=("network.act",)),
        Textbook(change=dropped_features),
    ),
    "InsertStochasticDepth": Technique(
        lambda: InsertStochasticDepth(p=0.4, include=("network.act",), seed=3),
        lambda: InsertStochasticDepth(p=0.0, include=("network.act",)),
        Textbook(change=skipped_activation),
    ),
    "InsertDropBlock": Technique(
        lambda: InsertDropBlock(p=0.3, block_size=2, include=("network.act.1",), seed=3),
        lambda: InsertDropBlock(p=0.0, include=("network.act.1",)),
        Textbook(change=dropped_blocks),
        prepare=map_of_features,
    ),
    "InsertDropConnect": Technique(
        lambda: InsertDropConnect(p=0.4, include=("network.hidden",), seed=3),
        lambda: InsertDropConnect(p=0.0, include=("network.first",)),
        Textbook(change=dropped_weights),
    ),
    "DropoutSchedule": Technique(
        lambda: [
            InsertDropout(p=0.8, include=("network.act",), seed=3),
            DropoutSchedule(include=("network.act",), schedule=StrengthSchedule(duration=EPOCHS - 1)),
        ],
        lambda: DropoutSchedule(include=("network.unused.1",)),
        Textbook(change=lambda model: dropped_features(model, lambda model: 0.8 * model.epoch / (EPOCHS - 1))),
        prepare=lambda model: setattr(model, "unused", nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))),
    ),
    "FreezeBatchNorm": Technique(
        lambda: FreezeBatchNorm(include=("network.norm",)),
        lambda: FreezeBatchNorm(include=("network.unused.1",)),
        Textbook(change=frozen_batch_norm),
        prepare=batch_norm,
    ),
    "RegularizationAudit": Technique(RegularizationAudit, lambda: RegularizationAudit(verbose=False, warn=False)),
    "ReplaceNorm": Technique(
        lambda: ReplaceNorm(norm="batch", types=("LayerNorm",)),
        lambda: ReplaceNorm(norm="layer", types=("LayerNorm",)),
        Textbook(change=lambda model: setattr(model, "norm", nn.BatchNorm1d(12))),
        second=lambda: ReplaceNorm(norm="batch", types=("LayerNorm",)),
        changed="network.norm",
    ),
    "SpectralNormalization": Technique(
        lambda: SpectralNormalization(include=("network.first",), seed=3),
        lambda: SpectralNormalization(include=UNRUN),
        Textbook(change=spectral_norm),
        changed="network.first",
    ),
    "WeightStandardization": Technique(
        lambda: WeightStandardization(include=("network.first",), types=("Linear",)),
        lambda: WeightStandardization(include=UNRUN, types=("Linear",)),
        Textbook(change=lambda model: register_parametrization(model.first, "weight", Standardized())),
        changed="network.first",
    ),
    "MaxNorm": Technique(lambda: MaxNorm(max_norm=0.7), lambda: MaxNorm(max_norm=1e9), Textbook(after_step=max_norm)),
    "ExponentialMovingAverage": Technique(
        lambda: ExponentialMovingAverage(decay=0.7),
        lambda: ExponentialMovingAverage(start_epoch=EPOCHS),
        Textbook(after_step=moving_average, evaluated=averaged_or_trained),
    ),
    "StochasticWeightAverage": Technique(
        lambda: StochasticWeightAverage(start=0.34),
        lambda: StochasticWeightAverage(start=EPOCHS - 1),  # the mean of one snapshot, at the end
        Textbook(after_step=mean_of_last_epochs, evaluated=averaged_or_trained),
    ),
    "Lookahead": Technique(
        lambda: Lookahead(k=2, alpha=0.6), lambda: Lookahead(k=2, alpha=1.0), Textbook(after_step=lookahead)
    ),
    "SharpnessAwareMinimization": Technique(
        lambda: SharpnessAwareMinimization(rho=0.2),
        lambda: SharpnessAwareMinimization(interval=1000),
        Textbook(sharpen=sharpness(0.2)),
        second=lambda: Lookahead(k=2, alpha=1.0),
    ),
    "SharpnessAwareMinimization adaptive": Technique(
        lambda: SharpnessAwareMinimization(rho=0.5, adaptive=True, eta=0.02, interval=2),
        lambda: SharpnessAwareMinimization(adaptive=True, interval=1000),
        Textbook(sharpen=at_every_second_step(sharpness(0.5, lambda weight: weight.abs() + 0.02))),
        second=lambda: Lookahead(k=2, alpha=1.0),
    ),
    "SharpnessAwareMinimization of norms": Technique(
        lambda: SharpnessAwareMinimization(rho=0.5, only="norm"),
        lambda: SharpnessAwareMinimization(only="norm", interval=1000),
        Textbook(sharpen=sharpness_of_norms(0.5)),
        second=lambda: Lookahead(k=2, alpha=1.0),
    ),
    "SharpnessAwareMinimization of the hardest": Technique(
        lambda: SharpnessAwareMinimization(rho=0.05, fraction=0.5),
        lambda: SharpnessAwareMinimization(fraction=0.5, interval=1000),
        sharpness_of_the_hardest(0.05),
        prepare=spread,
        second=lambda: Lookahead(k=2, alpha=1.0),
    ),
    "SharpnessAwareMinimization friendly": Technique(
        lambda: SharpnessAwareMinimization(rho=0.2, friendly=True, momentum=0.6),
        lambda: SharpnessAwareMinimization(friendly=True, interval=1000),
        Textbook(sharpen=friendly_sharpness(0.2, 0.6)),
        second=lambda: Lookahead(k=2, alpha=1.0),
    ),
    "UnitNorm": Technique(
        UnitNorm,
        lambda: UnitNorm(include=UNTRAINED),
        Textbook(after_step=lambda model, _: [w.copy_(F.normalize(w, dim=1)) for w in matrices(model)] and None),
    ),
    "NonNegative": Technique(
        NonNegative,
        lambda: NonNegative(include=UNTRAINED),
        Textbook(after_step=lambda model, _: [w.copy_(w.relu()) for w in matrices(model)] and None),
    ),
    "L2Penalty scheduled": Technique(
        lambda: L2Penalty(weight=0.05, schedule=StrengthSchedule(kind="linear")),
        lambda: L2Penalty(weight=0.05, schedule=OFF),
        penalty(lambda model: model.epoch / (EPOCHS - 1) * l2(model)),  # nothing in the first epoch, all in the last
    ),
    "BatchImages": Technique(lambda: BatchImages(every_n_epochs=1), BatchImages),
    "BestWeightsEarlyStopping": Technique(
        lambda: BestWeightsEarlyStopping("val_loss", patience=100),
        lambda: BestWeightsEarlyStopping("train_loss", patience=100, restore_best_weights=False),
        Textbook(final_epoch=lambda losses: min(range(len(losses)), key=losses.__getitem__)),
    ),
}

TESTS = Path(__file__).parents[1]
for path in sorted(TESTS.glob("callbacks/test_*.py")) + sorted(TESTS.glob("monitors/test_*.py")):
    if "CONFORMANCE = " in path.read_text():
        name = ".".join(("tests", *path.relative_to(TESTS).with_suffix("").parts))
        TECHNIQUES |= importlib.import_module(name).CONFORMANCE
