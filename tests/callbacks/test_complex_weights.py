"""Complex weights in a fit, whose gradients autograd leaves conjugated, beside loops by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_reg.callbacks import (
    ElasticNetPenalty,
    GradientClipping,
    GradientMonitor,
    L1Penalty,
    L2Penalty,
    NonNegative,
    SharpnessAwareMinimization,
)
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, loader
from tests.helpers import quiet_trainer

RATE = 0.1


class Unmixes(SomebodysModule):
    """Adds to the loss that of complex weights, which are transposed and conjugated."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.mixing = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.cfloat))
        with torch.no_grad():
            self.mixing[0, 0] = 0

    def loss(self, batch):
        mixed = self.mixing.mH @ torch.eye(3, 5, dtype=torch.cfloat)
        return F.cross_entropy(self.network(batch[0]), batch[1]) + (mixed - 1j).abs().square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


def fitted(*callbacks, steps=3):
    module, seen = Unmixes(), []
    module.mixing.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.is_conj()))
    trainer = quiet_trainer(*callbacks, max_epochs=1, limit_train_batches=steps, log_every_n_steps=1)
    trainer.fit(module, loader(), loader())
    return module, trainer, seen


def by_hand(term=None, change=None, after=None, steps=3):
    """Fits by a loop, with a term in the loss, a change of gradients, and one of weights after each step."""
    module = Unmixes()
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = module.configure_optimizers()

    def backward(batch):
        optimizer.zero_grad()
        loss = module.loss(batch)
        (loss if term is None else loss + term([weight for weight in weights if weight.ndim > 1])).backward()

    for batch, _ in zip(loader(), range(steps), strict=False):
        backward(batch)
        if change is not None:
            change(weights, lambda batch=batch: backward(batch))
        optimizer.step()
        if after is not None:
            with torch.no_grad():
                after([weight for weight in weights if weight.ndim > 1])
    return module


def climb(weights, backward):
    weights = [weight for weight in weights if weight.grad is not None]
    starts = [weight.detach().clone() for weight in weights]
    norm = torch.stack([weight.grad.abs().square().sum() for weight in weights]).sum().sqrt()
    with torch.no_grad():
        for weight in weights:
            weight.add_(weight.grad * (0.05 / norm))
    backward()
    with torch.no_grad():
        for weight, start in zip(weights, starts, strict=True):
            weight.copy_(start)


def absolute(weights):
    return sum((weight.abs() if weight.is_complex() else weight).norm(1) for weight in weights)


def squares(weights):
    return sum(weight.abs().square().sum() for weight in weights) / 2


def soften(weights):
    for weight in weights:
        weight.copy_(torch.polar((weight.abs() - RATE * 0.3).clamp(min=0), weight.angle()) if weight.is_complex() else
                   weight.sign() * (weight.abs() - RATE * 0.3).clamp(min=0))  # fmt: skip


WAYS = {
    "clipped": (
        GradientClipping(max_norm=0.1),
        {"change": lambda weights, _: nn.utils.clip_grad_norm_(weights, 0.1, foreach=False)},
    ),
    "clipped by the largest": (
        GradientClipping(max_norm=0.05, norm_type=torch.inf),
        {"change": lambda weights, _: nn.utils.clip_grad_norm_(weights, 0.05, torch.inf, foreach=False)},
    ),
    "sharpness": (SharpnessAwareMinimization(rho=0.05), {"change": climb}),
    "L1": (L1Penalty(weight=0.03), {"term": lambda weights: 0.03 * absolute(weights)}),
    "L2": (L2Penalty(weight=0.3), {"term": lambda weights: 0.3 * squares(weights)}),
    "elastic net": (
        ElasticNetPenalty(l1=0.03, l2=0.3),
        {"term": lambda weights: 0.03 * absolute(weights) + 0.3 * squares(weights)},
    ),
    "proximal": (L1Penalty(weight=0.3, proximal=True), {"after": soften}),
}


@pytest.mark.parametrize("way", WAYS)
def test_trains_as_a_loop_by_hand(way):
    technique, changes = WAYS[way]
    module, _, seen = fitted(technique)
    assert all(seen)  # else these gradients aren't what the test is about
    assert len(seen) >= 3
    plain, expected = by_hand(), by_hand(**changes)
    assert not torch.allclose(plain.mixing, expected.mixing, atol=1e-4)
    for one, other in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_monitor_measures_absolute_values():
    _, trainer, _ = fitted(GradientMonitor(update_ratio=True), steps=1)
    before, gradients = dict(Unmixes().named_parameters()), []
    after = by_hand(change=lambda weights, _: gradients.extend(weight.grad for weight in weights), steps=1)
    moved = {name: parameter for name, parameter in after.named_parameters() if parameter.grad is not None}

    def length(tensors):
        return sum(tensor.detach().abs().square().sum().item() for tensor in tensors if tensor is not None) ** 0.5

    ratio = length(each - before[name] for name, each in moved.items()) / length(before[name] for name in moved)
    assert trainer.callback_metrics["grad/norm"].item() == pytest.approx(length(gradients), rel=1e-5)
    assert trainer.callback_metrics["update/ratio"].item() == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize(
    ("technique", "text"),
    [
        (NonNegative(), "with NonNegative, but mixing is complex"),
        (GradientClipping(algorithm="value"), "with GradientClipping by value, but mixing is complex"),
    ],
)
def test_what_needs_an_order_is_refused(technique, text):
    with pytest.raises(SettingError, match=text):
        fitted(technique)


@pytest.mark.parametrize(
    "technique", [NonNegative(exclude=("mixing",)), GradientClipping(algorithm="value", exclude=("mixing",))]
)
def test_and_taken_where_complex_weights_are_excluded(technique):
    module, _, _ = fitted(technique)
    assert not torch.equal(module.mixing, Unmixes().mixing)
    assert module.mixing.isfinite().all()


@pytest.mark.parametrize(
    "technique",
    [
        GradientClipping(algorithm="percentile", include=("mixing",)),
        GradientClipping(algorithm="zscore", warmup_steps=2, z_threshold=0.01, include=("mixing",)),
    ],
)
def test_thresholds_are_learned_from_real_norms(technique):
    norms = []
    by_hand(change=lambda weights, _: norms.append(weights[0].grad.abs().square().sum().sqrt().item()), steps=2)
    fitted(technique, steps=2)
    (memory,) = technique.state_dict().values()
    if technique.algorithm == "percentile":
        assert memory["norms"][0].item() == pytest.approx(norms[0], rel=1e-5)
    else:  # the first two are only measured
        assert memory["moments"][1].item() == pytest.approx(sum(norms) / 2, rel=1e-5)
