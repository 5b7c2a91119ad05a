"""Every technique, and what a textbook would write for it. A technique that isn't here fails the suite."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from lightning_reg.attach.streams import random_stream
from lightning_reg.callbacks import (
    ActivityPenalty,
    BestWeightsEarlyStopping,
    ConfidencePenalty,
    ElasticNetPenalty,
    GradientCentralization,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    GroupLassoPenalty,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    MaxNorm,
    NonNegative,
    OrthogonalPenalty,
    StrengthSchedule,
    UnitNorm,
)
from tests.conformance.problem import EPOCHS, LEARNING_RATE, Textbook, matrices, network, trainable

OFF = StrengthSchedule(kind="constant", end=0.0)
UNTRAINED = ("network.frozen.*",)


@dataclass
class Technique:
    """How to attach it, and what it means by hand.

    Attributes:
        attach: Makes the callback.
        idle: Makes it with a strength at which it does nothing; where it has none, on what isn't trained.
        textbook: What it is by hand.
        second: Makes an idle one that can stand beside it; where None, ``idle``.
        clips: Whether it refuses to stand beside the Trainer's clipping.
    """

    attach: Callable[[], Callback]
    idle: Callable[[], Callback]
    textbook: Textbook = field(default_factory=Textbook)
    second: Callable[[], Callback] | None = None
    clips: bool = False


def penalty(term):
    return Textbook(term=lambda model, *_: term(model))


def l1(model):
    return 0.01 * sum(weight.abs().sum() for weight in matrices(model))


def l2(model):
    return 0.05 / 2 * sum((weight**2).sum() for weight in matrices(model))


def group_lasso(model):
    return 0.01 * sum(row.numel() ** 0.5 * row.norm() for weight in matrices(model) for row in weight.unbind(1))


def orthogonal(model):
    # Autocast would multiply matrices in 16 bits; a penalty is computed in the precision of the weights.
    with torch.autocast("cpu", enabled=False):
        return 0.02 * sum(((w @ w.T - torch.eye(len(w))) ** 2).sum() for w in matrices(model))


def l2_sp(model):
    pairs = zip(matrices(model), matrices(network()), strict=True)
    return 0.05 / 2 * sum(((weight - start.detach()) ** 2).sum() for weight, start in pairs)


def soft_threshold(model, share):
    for weight in matrices(model):
        weight.copy_(weight.sign() * (weight.abs() - LEARNING_RATE * 0.05 * share).clamp(min=0))


def group_soft_threshold(model, share):
    for weight in matrices(model):
        for row in weight:
            row.mul_((1 - LEARNING_RATE * 0.02 * share * len(row) ** 0.5 / row.norm()).clamp(min=0))


def activity(model, inputs, logits):
    features = model.seen.float()
    return 0.1 * features.abs().mean() + 0.2 * (features**2).mean() + 0.3 * features.diff(dim=1).square().mean()


def confidence(model, inputs, logits):
    probabilities = logits.float().softmax(1)
    return 0.3 * (probabilities * probabilities.log()).sum(1).mean()


def total_norm(model):
    return torch.stack([each.grad.norm() for each in trainable(model) if each.grad is not None]).norm()


def shorten(model, norm, target):
    if norm > target:
        for each in trainable(model):
            if each.grad is not None:
                each.grad.mul_(target / (norm + 1e-6))


def clip_value(model, step, memory):
    for each in trainable(model):
        if each.grad is not None:
            each.grad.clamp_(-0.05, 0.05)


def clip_adaptively(model, step, memory):
    for each in (model.first, model.hidden):
        for gradient, unit in zip(each.weight.grad, each.weight.detach(), strict=True):
            longest = 0.05 * max(unit.norm(), 1e-3)
            if gradient.norm() > longest:
                gradient.mul_(longest / gradient.norm())


def clip_by_percentile(model, step, memory):
    norm = total_norm(model)
    memory.setdefault("norms", []).append(norm)
    shorten(model, norm, torch.stack(memory["norms"]).quantile(0.3))


def clip_by_zscore(model, step, memory):
    norm, seen = total_norm(model), memory.setdefault("seen", [])
    if len(seen) < 2:
        seen.append(norm)
        memory["mean"], memory["var"] = torch.stack(seen).mean(), torch.stack(seen).var(correction=0)
        return
    z = (norm - memory["mean"]) / memory["var"].sqrt()
    target = memory["mean"] + memory["var"].sqrt() * 0.5**2 / z if z > 0.5 else norm
    shorten(model, norm, target)
    memory["mean"] = 0.9 * memory["mean"] + 0.1 * target
    memory["var"] = 0.9 * memory["var"] + 0.1 * (target - memory["mean"]) ** 2


def noise(model, step, memory):
    generator = torch.Generator().manual_seed(random_stream(3, 0, step, "gradient noise", 0, 0).getrandbits(63))
    for each in trainable(model):
        if each.grad is not None:
            each.grad.add_(torch.empty_like(each).normal_(generator=generator) * (0.01 / (1 + step) ** 0.55) ** 0.5)


def centralize(model, step, memory):
    for weight in matrices(model):
        if weight.grad is not None:
            weight.grad.sub_(weight.grad.mean(1, keepdim=True))


def max_norm(model, share):
    for weight in matrices(model):
        weight.copy_(weight.renorm(2, 0, 0.7))


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
    "GradientMonitor": Technique(
        lambda: GradientMonitor(every_n_steps=1, layers=("*",), update_ratio=True), GradientMonitor
    ),
    "GradientNoise": Technique(
        lambda: GradientNoise(seed=3), lambda: GradientNoise(eta=0.0), Textbook(on_gradients=noise)
    ),
    "GradientCentralization": Technique(
        GradientCentralization, lambda: GradientCentralization(include=UNTRAINED), Textbook(on_gradients=centralize)
    ),
    "MaxNorm": Technique(lambda: MaxNorm(max_norm=0.7), lambda: MaxNorm(max_norm=1e9), Textbook(after_step=max_norm)),
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
    "BestWeightsEarlyStopping": Technique(
        lambda: BestWeightsEarlyStopping("val_loss", patience=100),
        lambda: BestWeightsEarlyStopping("train_loss", patience=100, restore_best_weights=False),
        Textbook(final_epoch=lambda losses: min(range(len(losses)), key=losses.__getitem__)),
    ),
}
