"""Every callback as a project would attach it: with its conformance settings, or others that fit any network."""

import functools

from lightning.pytorch import Callback

from lightning_reg import callbacks
from lightning_reg.callbacks import (
    BatchImages,
    BatchMixing,
    BestWeightsEarlyStopping,
    DropoutSchedule,
    ExponentialMovingAverage,
    FreezeBatchNorm,
    GradientClipping,
    InsertDropBlock,
    InsertDropConnect,
    InsertDropout,
    InsertLayerDrop,
    InsertStochasticDepth,
    InsertTokenDropout,
    Lookahead,
    ManifoldMixup,
    MaxNorm,
    Mixout,
    ReplaceNorm,
    SharpnessAwareMinimization,
    SpectralNormalization,
    StochasticWeightAverage,
    StrengthSchedule,
    WeightStandardization,
)
from lightning_reg.transforms import Mixup
from tests.conformance.technique import as_list
from tests.conformance.techniques import TECHNIQUES

PUBLIC = sorted(
    name
    for name in callbacks.__all__
    if isinstance(getattr(callbacks, name), type)
    if issubclass(getattr(callbacks, name), Callback)
)

# By name, from a project to what is attached. A technique that isn't here has its settings of the conformance suite.
SETTINGS = {
    "AdversarialTraining": lambda project: callbacks.AdversarialTraining(eps=0.3, input_key=project.input_key),
    "BatchMixing": lambda project: BatchMixing(
        Mixup(alpha=0.7), input_key=project.input_key, target_key=project.target_key, seed=3
    ),
    "BatchMixing per sample": lambda project: BatchMixing(
        Mixup(alpha=0.7, per_sample=True), input_key=project.input_key, target_key=project.target_key, seed=3
    ),
    "BatchImages": lambda project: BatchImages(input_key=project.input_key, target_key=project.target_key),
    "BestWeightsEarlyStopping": lambda project: BestWeightsEarlyStopping(project.watched, patience=100),
    "DropoutSchedule": lambda _: DropoutSchedule(schedule=StrengthSchedule(end=2.0, duration=1)),
    "FreezeBatchNorm": lambda _: FreezeBatchNorm(),
    "GradientClipping": lambda _: GradientClipping(max_norm=0.01),
    "GradientClipping value": lambda _: GradientClipping(algorithm="value", max_value=0.001),
    "GradientClipping adaptive": lambda _: GradientClipping(algorithm="adaptive", clip_factor=0.001),
    "GradientClipping percentile": lambda _: GradientClipping(algorithm="percentile", percentile=30),
    "GradientClipping zscore": lambda _: GradientClipping(
        algorithm="zscore", z_threshold=0.01, alpha=0.1, warmup_steps=2
    ),
    "InputGradientPenalty": lambda project: callbacks.InputGradientPenalty(weight=0.1, input_key=project.input_key),
    "JacobianPenalty": lambda project: callbacks.JacobianPenalty(weight=0.1, input_key=project.input_key),
    "InsertDropBlock": lambda _: InsertDropBlock(p=0.3, block_size=2, include=("*first",), types=("Conv2d",), seed=3),
    "InsertDropConnect": lambda _: InsertDropConnect(p=0.4, include=("*hidden",), seed=3),
    "InsertDropout": lambda _: InsertDropout(p=0.4, include=("*act",), seed=3),
    "InsertLayerDrop": lambda _: InsertLayerDrop(p=0.6, include=("*act",), seed=3),
    "InsertStochasticDepth": lambda _: InsertStochasticDepth(p=0.4, include=("*act",), seed=3),
    "InsertTokenDropout": lambda _: InsertTokenDropout(p=0.5, types=("TransformerEncoderLayer",), seed=3),
    "L2Penalty scheduled": lambda _: callbacks.L2Penalty(weight=0.05, schedule=StrengthSchedule(kind="linear")),
    "ManifoldMixup": lambda project: ManifoldMixup(
        layers=("*act",), input_key=project.input_key, target_key=project.target_key, seed=3
    ),
    "MaxNorm": lambda _: MaxNorm(max_norm=0.3),
    "Mixout": lambda _: Mixout(p=0.4, include=("*hidden",), seed=3),
    "ProgressiveResizing": lambda project: callbacks.ProgressiveResizing(stages=2, input_key=project.input_key),
    "RegMixup": lambda project: callbacks.RegMixup(input_key=project.input_key, target_key=project.target_key, seed=3),
    "ReplaceNorm": lambda _: ReplaceNorm(norm="layer", include=("*norm",)),
    "SpectralNormalization": lambda _: SpectralNormalization(include=("*hidden",), seed=3),
    "StochasticWeightAverage": lambda _: StochasticWeightAverage(start=0),
    "WeightStandardization": lambda _: WeightStandardization(include=("*hidden",), types=("Linear",)),
}

NAMES = sorted(set(TECHNIQUES) | set(SETTINGS))


def only_watches(name):
    return getattr(getattr(callbacks, name.split()[0]), "only_watches", False)


def make(name, project):
    return as_list(SETTINGS[name](project) if name in SETTINGS else TECHNIQUES[name].attach())


# What only watches must leave no trace; nor must what moves the weights by nothing, however often it runs the step.
TRACELESS = {
    **{name: functools.partial(make, name) for name in NAMES if only_watches(name)},
    "SharpnessAwareMinimization of no length": lambda _: [SharpnessAwareMinimization(rho=1e-9)],
    "ExponentialMovingAverage of the last weights": lambda _: [
        ExponentialMovingAverage(decay=1e-9, warmup=False, buffers="copy", validate="both")
    ],
    "StochasticWeightAverage of the last epoch": lambda _: [StochasticWeightAverage(start=1, validate="both")],
    "BestWeightsEarlyStopping that never stops": lambda project: [
        BestWeightsEarlyStopping(project.watched, patience=100, restore_best_weights=False)
    ],
    "Lookahead that follows": lambda _: [Lookahead(k=2, alpha=1.0)],
}
