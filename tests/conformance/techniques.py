"""Every technique, and what a textbook would write for it, here or in the technique's own test.

A technique that is in neither fails the suite.
"""

import importlib
from pathlib import Path

import numpy as np
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
from lightning_reg.core.streams import random_stream
from lightning_reg.nn import ConcreteDropout
from lightning_reg.transforms import Mixup
from tests.conformance.draws import generator_of, kept
from tests.conformance.problem import BATCHES, EPOCHS, LEARNING_RATE, Network, Textbook, matrices, network, trainable
from tests.conformance.technique import OFF, UNRUN, UNTRAINED, Technique, penalty
from tests.helpers import PACKAGE

if PACKAGE == "pytorch_lightning":
    from lightning_reg.pytorch_lightning import BestWeightsEarlyStopping


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


def mixup(per_sample):
    """λ·L(y_a) + (1 - λ)·L(y_b), written out sample by sample."""

    def mix(model, inputs, labels):
        stream = random_stream(0, model.rank, model.epoch, model.batch, "BatchMixing", 0)
        if stream.random() >= 0.8:
            return inputs, lambda logits: F.cross_entropy(logits, labels)
        drawn = [stream.betavariate(0.7, 0.7) for _ in range(len(inputs) if per_sample else 1)]
        minor = (
            [min(share, 1 - share) for share in drawn] if per_sample else [min(drawn[0], 1 - drawn[0])] * len(inputs)
        )
        mixed = torch.stack([(1 - w) * inputs[i] + w * inputs[i - 1] for i, w in enumerate(minor)])

        def loss_of(logits):
            losses = [
                (1 - w) * F.cross_entropy(logits[i], labels[i]) + w * F.cross_entropy(logits[i], labels[i - 1])
                for i, w in enumerate(minor)
            ]
            return torch.stack(losses).mean()

        return mixed, loss_of

    return Textbook(mix=mix)


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
    return torch.stack([parameter.grad.norm() for parameter in trainable(model) if parameter.grad is not None]).norm()


def shorten(model, norm, target):
    if norm > target:
        for parameter in trainable(model):
            if parameter.grad is not None:
                parameter.grad.mul_(target / (norm + 1e-6))


def clip_value(model, step, memory):
    for parameter in trainable(model):
        if parameter.grad is not None:
            parameter.grad.clamp_(-0.05, 0.05)


def clip_adaptively(model, step, memory):
    for layer in (model.first, model.hidden):
        for gradient, unit in zip(layer.weight.grad, layer.weight.detach(), strict=True):
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
    for parameter in trainable(model):
        if parameter.grad is not None:
            parameter.grad.add_(
                torch.empty_like(parameter).normal_(generator=generator) * (0.01 / (1 + step) ** 0.55) ** 0.5
            )


def signs(model, step, memory):
    """σ or −σ by a random bit: the first bits of all words of the dtype's width, then the second ones, and so on."""
    generator = torch.Generator().manual_seed(random_stream(3, 0, step, "gradient noise", 0, 0).getrandbits(63))
    for weight in trainable(model):
        if weight.grad is not None:
            words = torch.empty(-(-weight.numel() // 64), dtype=torch.int64).random_(
                -(2**63), None, generator=generator
            )
            octets = words.numpy().view(np.uint8).reshape(-1, weight.grad.itemsize)[:, ::-1]  # the highest first
            bits = np.unpackbits(octets, axis=1).T.flatten()[: weight.numel()]
            sign = 1 - 2.0 * torch.from_numpy(bits).to(weight.grad).view(weight.shape)
            weight.grad.add_(sign * (0.01 / (1 + step) ** 0.55) ** 0.5)


def centralize(model, step, memory):
    for weight in matrices(model):
        if weight.grad is not None:
            weight.grad.sub_(weight.grad.mean(1, keepdim=True))


def max_norm(model, share):
    for weight in matrices(model):
        weight.copy_(weight.renorm(2, 0, 0.7))


def moving_average(model, share):
    """With the usual warm-up; the first time it is a copy."""
    if not hasattr(model, "average"):
        model.average, model.updates = [weight.clone() for weight in model.parameters()], 0
    decay = min(0.7, (1 + model.updates) / (10 + model.updates))
    for average, weight in zip(model.average, model.parameters(), strict=True):
        average.mul_(decay).add_((1 - decay) * weight)
    model.updates += 1


def mean_of_last_epochs(model, share):
    if model.epoch >= 1 and model.batch == BATCHES - 1:
        model.snapshots = [*getattr(model, "snapshots", []), [weight.clone() for weight in model.parameters()]]
        model.average = [torch.stack(weights).mean(0) for weights in zip(*model.snapshots, strict=True)]


def lookahead(model, share):
    model.steps = getattr(model, "steps", 0) + 1
    slow = model.__dict__.setdefault("slow", [weight.detach().clone() for weight in network().parameters()])
    if model.steps % 2 == 0:
        for back, weight in zip(slow, model.parameters(), strict=True):
            back.copy_(0.4 * back + 0.6 * weight)
            weight.copy_(back)


def sharpness(rho, scale=torch.ones_like):
    """Climbs along the gradient, each weight in a scale of its own, and comes back."""

    def sharpen(model, again):
        trained = [weight for weight in trainable(model) if weight.grad is not None]
        before = [weight.detach().clone() for weight in trained]
        scaled = [scale(weight.detach()) * weight.grad for weight in trained]
        length = torch.cat([entry.flatten() for entry in scaled]).norm()
        with torch.no_grad():
            for weight, step in zip(trained, scaled, strict=True):
                weight.add_(rho * scale(weight) * step / length)
        again()
        with torch.no_grad():
            for weight, start in zip(trained, before, strict=True):
                weight.copy_(start)

    return sharpen


class Spread(Network):
    """Has losses that lie further apart, because rounding may change which are the largest."""

    def forward(self, inputs):
        return super().forward(inputs) + 0.5 * inputs[:, 3:]


def spread(model):
    model.__class__ = Spread


def sharpness_of_the_hardest(rho):
    """Climbs as always; the gradients up there are of the half of each batch with the largest losses."""

    def mix(model, inputs, labels):
        chosen = getattr(model, "hardest", {}).get((model.batch, model.rank))
        if chosen is not None:
            inputs, labels = inputs[chosen], labels[chosen]

        def loss_of(logits):
            losses = F.cross_entropy(logits, labels, reduction="none")
            model.losses = {**getattr(model, "losses", {}), (model.batch, model.rank): losses.detach()}
            return losses.mean()

        return inputs, loss_of

    def sharpen(model, again):
        model.hardest = {
            place: sorted(range(len(losses)), key=losses.tolist().__getitem__)[len(losses) // 2 :]
            for place, losses in model.losses.items()
        }
        sharpness(rho)(model, again)
        model.hardest, model.losses = {}, {}

    return Textbook(mix=mix, sharpen=sharpen)


def sharpness_of_norms(rho):
    """Climbs with the scales and shifts of the normalization layer alone."""

    def sharpen(model, again):
        moved = list(model.norm.parameters())
        before = [weight.detach().clone() for weight in moved]
        length = torch.cat([weight.grad.flatten() for weight in moved]).norm()
        with torch.no_grad():
            for weight in moved:
                weight.add_(rho * weight.grad / length)
        again()
        with torch.no_grad():
            for weight, start in zip(moved, before, strict=True):
                weight.copy_(start)

    return sharpen


def friendly_sharpness(rho, kept):
    """Climbs along what the gradient has beyond its moving average."""

    def sharpen(model, again):
        trained = [weight for weight in trainable(model) if weight.grad is not None]
        means = model.__dict__.setdefault("means", [torch.zeros_like(weight) for weight in trained])
        for mean, weight in zip(means, trained, strict=True):
            mean.mul_(kept).add_((1 - kept) * weight.grad)
        ways = [weight.grad - mean for weight, mean in zip(trained, means, strict=True)]
        before = [weight.detach().clone() for weight in trained]
        length = torch.cat([way.flatten() for way in ways]).norm()
        with torch.no_grad():
            for weight, way in zip(trained, ways, strict=True):
                weight.add_(rho * way / length)
        again()
        with torch.no_grad():
            for weight, start in zip(trained, before, strict=True):
                weight.copy_(start)

    return sharpen


def at_every_second_step(sharpen):
    def sometimes(model, again):
        model.steps_seen = getattr(model, "steps_seen", 0) + 1
        if model.steps_seen % 2 == 0:
            sharpen(model, again)

    return sometimes


def averaged_or_trained(model):
    return getattr(model, "average", list(model.parameters()))


def dropped_features(model, rate=lambda _: 0.4):
    features = model.features

    def dropped(inputs):
        outputs, p = features(inputs), rate(model)
        if not model.training or p == 0:
            return outputs
        return outputs * kept("InsertDropout", model, outputs, outputs.shape, p) / (1 - p)

    model.features = dropped


def map_of_features(model):
    model.act = nn.Sequential(nn.Tanh(), nn.Unflatten(1, (3, 4)), nn.Flatten())


class DroppedBlocks(nn.Module):
    """Blocks of two along four positions: the first is covered by one seed, its own, the others by two."""

    def __init__(self, model):
        super().__init__()
        self.model = [model]

    def forward(self, maps):
        if not self.training:
            return maps
        # (keep + 3 keep²) / 4 = 0.7
        keep = (-1 + (1 + 12 * 4 * 0.7) ** 0.5) / 6
        drawn = generator_of("InsertDropBlock", self.model[0])
        seed = torch.empty(maps.shape).bernoulli_(1 - keep, generator=drawn) == 1
        dropped = seed.clone()
        dropped[:, :, 1:] |= seed[:, :, :-1]
        return (maps * (~dropped) / torch.tensor([keep, keep**2, keep**2, keep**2])).to(maps.dtype)


def dropped_blocks(model):
    model.act.insert(2, DroppedBlocks(model))


class Skipped(nn.Module):
    """An activation as a residual block that is dropped for whole samples."""

    def __init__(self, model):
        super().__init__()
        self.model = [model]

    def forward(self, inputs):
        outputs = torch.tanh(inputs)
        if not self.training:
            return outputs
        keep = kept("InsertStochasticDepth", self.model[0], outputs, (len(outputs), 1), 0.4)
        return inputs + (outputs - inputs) * keep / 0.6


def skipped_activation(model):
    model.act = Skipped(model)


def dropped_weights(model):
    layer = model.hidden

    def forward(inputs):
        weight = layer.weight
        if model.training:
            weight = weight * kept("InsertDropConnect", model, weight, weight.shape, 0.4) / 0.6
        return F.linear(inputs, weight, layer.bias)

    layer.forward = forward


def batch_norm(model):
    """As a pretrained network has it."""
    model.norm = nn.BatchNorm1d(12)
    model.norm.running_mean.fill_(0.2)
    model.norm.running_var.fill_(1.5)
    model.unused = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def frozen_batch_norm(model):
    model.norm.requires_grad_(False)
    model.norm.train = lambda *_: model.norm
    model.norm.training = False


def spectral_norm(model):
    seed = random_stream(3, "spectral normalization", "network.first").getrandbits(63)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nn.utils.parametrizations.spectral_norm(model.first)


class Standardized(nn.Module):
    def forward(self, weight):
        return (weight - weight.mean(1, keepdim=True)) / (weight.var(1, keepdim=True, correction=0) + 1e-5).sqrt()


class Pattern:
    """In the place of random numbers, which neither the user's network nor the textbook's could repeat."""

    def serves(self, inputs):
        return True

    def draw(self, kind, like, shape, p=0.0):
        return torch.linspace(0.05, 0.95, shape[-1], device=like.device).expand(shape)


def concrete_head(model):
    model.head = ConcreteDropout(model.head, p=0.3, length_scale=2.0)
    model.head.stream = Pattern()


def concrete_term(model):
    layer = model.head
    p = layer.p_logit.sigmoid()
    entropy = -p * p.log() - (1 - p) * (1 - p).log()
    return (4.0 / 2 / (1 - p) * (layer.layer.weight**2).sum() - 12 * entropy) / 48


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
