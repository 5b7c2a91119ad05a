"""Parts of a loss that are written by hand, beside a loss of torch's: mixed as that is."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.callbacks.mixed import CLASSES, LABELS, by_hand, trained

MARKED = torch.rand(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(1)).round()


def poly(out, targets):
    probability = out.softmax(-1).gather(1, targets[:, None]).squeeze(1)
    return (F.cross_entropy(out, targets, reduction="none") + 2 * (1 - probability)).mean()


def poly_of_one_hot(out, targets):
    probability = (out.softmax(-1) * F.one_hot(targets, CLASSES)).sum(-1)
    return (F.cross_entropy(out, targets, reduction="none") + 2 * (1 - probability)).mean()


def picked(out, targets):
    return F.cross_entropy(out, targets) - out.softmax(-1)[torch.arange(len(out)), targets].log().square().mean()


def dice(out, targets):
    chances = out.sigmoid()
    overlap = 1 - 2 * (chances * targets).sum() / (chances.sum() + targets.sum())
    return F.binary_cross_entropy_with_logits(out, targets) + overlap


def focal_of_torchvision(out, targets):
    return sigmoid_focal_loss(out, targets, reduction="mean")


def hinge_beside(out, targets):
    return (1 - out * (2 * targets - 1)).relu().mean() + F.mse_loss(out, targets)


def log_cosh_beside(out, targets):
    return F.l1_loss(out, targets) + torch.log(torch.cosh(targets - out)).mean()


BESIDE = {
    poly: LABELS,
    poly_of_one_hot: LABELS,
    picked: LABELS,
    dice: MARKED,
    focal_of_torchvision: MARKED,
    hinge_beside: MARKED,
    log_cosh_beside: MARKED,
}


@pytest.mark.parametrize(("loss", "targets"), BESIDE.items(), ids=lambda part: getattr(part, "__name__", ""))
def test_it_is_mixed_like_the_loss_beside_it(loss, targets):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module, (draw,), _ = trained(Mixup(), loss, targets)
    assert not [str(warning.message) for warning in told if "BatchMixing" in str(warning.message)]
    torch.testing.assert_close(module.losses[0], by_hand(loss, module, draw, targets).detach(), rtol=1e-5, atol=1e-6)


def each_beside_each(out, targets):
    return (F.mse_loss(out, targets, reduction="none") + 3 * (out - targets)).sum(1).mean()


def test_samples_with_weights_of_their_own_are_mixed_by_these():
    module, (draw,), _ = trained(Mixup(per_sample=True), each_beside_each, MARKED)
    out = module.network(draw.change(torch.randn(len(LABELS), 4, generator=torch.Generator().manual_seed(0))))
    ends = [
        torch.stack([each_beside_each(row[None], target[None]) for row, target in zip(out, targets, strict=True)])
        for targets in (MARKED, MARKED.roll(1, 0))
    ]
    expected = torch.lerp(*ends, draw.minor_weight.to(out)).mean()
    torch.testing.assert_close(module.losses[0], expected.detach(), rtol=1e-5, atol=1e-6)


def test_samples_with_weights_of_their_own_need_a_linear_part():
    with pytest.raises(SettingError, match="with BatchMixing, but what square makes of it can't be"):
        trained(Mixup(per_sample=True), lambda out, y: F.mse_loss(out, y) + (out - y).sum(1).square().mean(), MARKED)


class Centers(nn.Module):
    """A center for each class, which a network's outputs are drawn to."""

    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(2)))

    def forward(self, out, targets):
        return F.cross_entropy(out, targets) + (out - self.centers[targets]).square().sum(1).mean()


def test_parameters_that_targets_look_up_are_mixed():
    loss = Centers()
    module, (draw,), _ = trained(Mixup(), loss, LABELS)
    torch.testing.assert_close(module.losses[0], by_hand(loss, module, draw, LABELS).detach(), rtol=1e-5, atol=1e-6)


def test_statistics_of_a_network_that_takes_targets_in_are_not_counted_twice():
    norm = nn.BatchNorm1d(CLASSES)
    with pytest.raises(SettingError, match="with BatchMixing, but what batch_norm makes of it can't be"):
        trained(Mixup(), lambda out, targets: F.cross_entropy(norm(out * (1 + targets[:, None])), targets), LABELS)
