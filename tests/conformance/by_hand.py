"""What a textbook would write for each technique, for a loop without Lightning."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lightning_reg.core.streams import random_stream
from lightning_reg.nn import ConcreteDropout
from tests.conformance.draws import generator_of, kept
from tests.conformance.problem import BATCHES, LEARNING_RATE, Network, Textbook, matrices, network, trainable


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
