"""Labels that a step writes into tensors: mixed as a loss by hand in float64 is, or told of by name."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import BatchMixing
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.callbacks.mixed import Recorded
from tests.helpers import quiet_trainer

COUNT, CLASSES = 8, 3
INPUTS = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 0, 2])
MARGINS = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)


class Theirs(LightningModule):
    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, CLASSES).double()
        self.loss, self.seen = loss, []

    def training_step(self, batch, batch_idx):
        value = self.loss(self.layer(batch[0]), batch[1])
        self.seen.append(value.detach())
        return value

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)  # so that the loss can be computed again


def mixed(loss, **settings):
    """A module after one batch, its inputs and the partners' weight in it, and what mixing said."""
    module, mix = Theirs(loss), Recorded(**{"alpha": 1.0} | settings)
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=COUNT)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quiet_trainer(BatchMixing(mix, seed=3)).fit(module, loader)
    said = [str(warning.message) for warning in told if "BatchMixing" in str(warning.message)]
    return module, mix.latest, said


def zeros(out):
    return torch.zeros(len(out), CLASSES, dtype=out.dtype)


def scattered(out, labels):
    return zeros(out).scatter_(1, labels[:, None], 1.0)


def scattered_into_another(out, labels):
    return torch.scatter(zeros(out), 1, labels.unsqueeze(1), 1.0)


def scattered_by_name(out, labels):
    return zeros(out).scatter(dim=1, index=labels.view(-1, 1), value=1)


def scattered_and_smoothed(out, labels):
    return torch.empty_like(out, requires_grad=False).fill_(0.1).scatter_(1, labels.data.unsqueeze(1), 0.8)


def indexed(out, labels):
    hot = zeros(out)
    hot[torch.arange(len(out)), labels] = 1
    return hot


def indexed_in_a_view(out, labels):
    hot = zeros(out)
    hot.view(-1)[torch.arange(len(out)) * CLASSES + labels] = 1
    return hot


def seen_in_a_view_of_before(out, labels):
    hot = zeros(out)
    seen = hot.view(-1)
    hot.scatter_(1, labels[:, None], 1.0)
    return seen.view(len(out), CLASSES)


def of_the_labels_kind(out, labels):
    hot = labels.new_zeros(len(labels), CLASSES).scatter_(1, labels[:, None], 1)
    return (torch.full_like(labels, 2).unsqueeze(1) * hot / 2).to(out.dtype)


def row_by_row(out, labels):
    hot = zeros(out)
    for row, label in zip(hot, labels, strict=True):
        row[label] = 1
    return hot


def column_by_column(out, labels):
    hot = zeros(out)
    for label in range(CLASSES):
        hot[labels == label, label] = 1
    return hot


def of_the_other_shape(out, labels):
    hot = zeros(out).T
    hot[labels, torch.arange(len(out))] = 1
    return hot.T


def without_background(out, labels):
    hot = F.one_hot(labels, CLASSES).to(out.dtype)
    hot[:, 0] = 0
    return hot


def twice(out, labels):
    hot = scattered(out, labels)
    hot[:, 1:].mul_(0.5)
    hot += 0.1
    return hot


def stacked(out, labels):
    return torch.stack([(labels == label).to(out.dtype) for label in range(CLASSES)], 1)


def drawn_to(make):
    def loss(out, labels):
        return F.cross_entropy(out, labels) + (out.softmax(1) - make(out, labels)).square().sum(1).mean()

    loss.__name__ = make.__name__
    return loss


def dice_of_monai(out, labels):
    """As MONAI's ``DiceCELoss`` with ``to_onehot_y`` computes it."""
    hot = zeros(out).scatter_(dim=1, index=torch.reshape(labels, (len(out), 1)).long(), value=1)
    chances = out.softmax(1)
    overlap, total = (hot * chances).sum(0), hot.sum(0) + chances.sum(0)
    return (1 - (2 * overlap + 1e-5) / (total + 1e-5)).mean() + F.cross_entropy(out, labels)


def dice_by_einsum(out, labels):
    overlap = torch.einsum("nc,nc->c", out.softmax(1), scattered(out, labels))
    return F.cross_entropy(out, labels) - overlap.log().mean()


def alone(out, labels):
    return F.mse_loss(out, scattered(out, labels))


def relabeled(out, labels):
    labels = labels.clone()
    labels[labels == 2] = 0
    return F.cross_entropy(out, labels)


def by_written_counts(out, labels):
    counts = torch.zeros(CLASSES, dtype=out.dtype).scatter_add_(0, labels, torch.ones_like(labels, dtype=out.dtype))
    return F.cross_entropy(out, labels, weight=1 / counts)


def cosface(out, labels):
    return F.cross_entropy(4 * (out - 0.35 * scattered(out, labels)), labels)


def arcface(out, labels):
    cosines = out.tanh()
    turned = cosines * 0.9 - (1 - cosines**2).sqrt() * 0.4
    hot = torch.zeros(cosines.size(), dtype=out.dtype)
    hot.scatter_(1, labels.view(-1, 1).long(), 1)
    return F.cross_entropy(4 * (hot * turned + (1 - hot) * cosines), labels)


def ldam(out, labels):
    index = torch.zeros_like(out, dtype=torch.uint8).scatter_(1, labels.data.view(-1, 1), 1)
    margins = torch.matmul(MARGINS[None, :], index.to(out.dtype).transpose(0, 1)).view(-1, 1)
    return F.cross_entropy(torch.where(index.bool(), out - margins, out), labels)


def without_the_label(out, labels):
    others = out.clone()
    others[torch.arange(len(out)), labels] = -5.0
    return F.cross_entropy(out, labels) + others.logsumexp(1).mean()


def written_in_part(out, labels):
    moved = 1 * out
    moved[:, :2].masked_fill_(F.one_hot(labels, CLASSES)[:, :2].bool(), -1.0)
    return F.nll_loss(moved.log_softmax(1), labels)


def of_picked(out, labels):
    kept = labels > 0
    return F.cross_entropy(out[kept], labels[kept])


def by_a_mask(out, labels):
    return F.cross_entropy(out, labels) - out.softmax(1)[F.one_hot(labels, CLASSES).bool()].mean()


def only_hard_ones(out, labels):
    losses = F.cross_entropy(out, labels, reduction="none")
    hard = torch.zeros_like(losses, requires_grad=False)
    hard[losses.detach() > 0.9] = 1
    return (losses * hard).sum() / hard.sum() + (out.square().sum(1) * hard).mean()


def collected(out, labels):
    both = torch.zeros(2, dtype=out.dtype)
    both[0] = F.cross_entropy(out, labels)
    both[1] = F.mse_loss(out, F.one_hot(labels, CLASSES).to(out.dtype))
    return both.mean()


WAYS = [
    scattered,
    scattered_into_another,
    scattered_by_name,
    scattered_and_smoothed,
    indexed,
    indexed_in_a_view,
    seen_in_a_view_of_before,
    of_the_labels_kind,
    row_by_row,
    column_by_column,
    of_the_other_shape,
    without_background,
    twice,
    stacked,
]
LOSSES = [
    *map(drawn_to, WAYS),
    dice_of_monai,
    dice_by_einsum,
    alone,
    relabeled,
    by_written_counts,
    cosface,
    arcface,
    ldam,
    without_the_label,
    written_in_part,
    of_picked,
    by_a_mask,
    only_hard_ones,
    collected,
]
losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


@losses
def test_they_are_mixed_as_by_hand(loss):
    module, draw, said = mixed(loss)
    assert not said
    weight = draw.minor_weight.double()
    out = module.layer((1 - weight) * INPUTS + weight * INPUTS.roll(1, 0))
    ends = [loss(out, labels) for labels in (LABELS, LABELS.roll(1))]
    expected = (1 - weight) * ends[0] + weight * ends[1]
    assert not torch.isclose(*ends)
    torch.testing.assert_close(module.seen[0], expected.detach(), rtol=1e-12, atol=1e-12)
    given = [parameter.grad for parameter in module.parameters()]
    by_hand = torch.autograd.grad(expected, list(module.parameters()))
    torch.testing.assert_close(given, list(by_hand), rtol=1e-12, atol=1e-12)


@losses
def test_a_batch_that_is_not_mixed_is_trained_on_to_the_bit(loss):
    module, draw, said = mixed(loss, prob=0.0)
    assert draw is None
    assert not said
    assert torch.equal(module.seen[0], loss(module.layer(INPUTS), LABELS).detach())


@losses
def test_two_mixings_are_mixed_one_within_the_other(loss):
    module, draws = Theirs(loss), []

    class Drawn(Mixup):
        def drawn(self, inputs, *, stream):
            draws.append(super().drawn(inputs, stream=stream))
            return draws[-1]

    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=COUNT)
    quiet_trainer(BatchMixing(Drawn(), seed=3), BatchMixing(Drawn(), seed=5)).fit(module, loader)
    inputs, expected, weights = INPUTS, 0.0, [draw.minor_weight.double() for draw in draws]
    for weight in weights:
        inputs = (1 - weight) * inputs + weight * inputs.roll(1, 0)
    for outer, of_outer in enumerate((1 - weights[0], weights[0])):
        for inner, of_inner in enumerate((1 - weights[1], weights[1])):
            expected += of_outer * of_inner * loss(module.layer(inputs), LABELS.roll(outer + inner))
    torch.testing.assert_close(module.seen[0], expected.detach(), rtol=1e-12, atol=1e-12)


SEPARATE = [drawn_to(scattered), drawn_to(indexed), drawn_to(row_by_row), alone, cosface, arcface]


@pytest.mark.parametrize("loss", SEPARATE, ids=lambda loss: loss.__name__)
def test_each_sample_with_a_weight_of_its_own(loss):
    module, draw, said = mixed(loss, per_sample=True)
    assert not said
    weights = draw.minor_weight.double()
    out = module.layer((1 - weights)[:, None] * INPUTS + weights[:, None] * INPUTS.roll(1, 0))
    own, other = (
        torch.stack([loss(row[None], label[None]) for row, label in zip(out, labels, strict=True)])
        for labels in (LABELS, LABELS.roll(1))
    )
    expected = ((1 - weights) * own + weights * other).mean()
    torch.testing.assert_close(module.seen[0], expected.detach(), rtol=1e-6, atol=1e-6)


def drawn_at_random(out, labels):
    hot = scattered(out, labels)
    hot.bernoulli_(0.5)
    return F.cross_entropy(out, labels) + (out - hot).square().mean()


def taken_in(out, labels):
    return F.cross_entropy(out + F.linear(scattered(out, labels), torch.eye(CLASSES).double().requires_grad_()), labels)


@pytest.mark.parametrize(
    ("loss", "maker"),
    [(drawn_at_random, "sub of what bernoulli_ made"), (taken_in, "linear")],
    ids=["drawn", "taken in"],
)
def test_what_cannot_be_written_for_both_is_told(loss, maker):
    _, _, said = mixed(loss)
    assert len(said) == 1
    assert f"something differentiable of them by {maker}: that sees each sample's own target alone" in said[0]


def written_into_a_view(out, labels):
    each = F.cross_entropy(out, labels, reduction="none")
    each[:2].mul_(0)
    return each.mean()


def written_into_a_shape(out, labels):
    each = F.cross_entropy(out, labels, reduction="none")
    each.view(2, -1)[0] = 0
    return each.mean()


def changed_and_compared(out, labels):
    moved = out - 0.35 * F.one_hot(labels, CLASSES)
    moved *= 4
    return F.cross_entropy(moved, labels)


def one_by_one(out, labels):
    """The two ends have unequally many rows."""
    first = out[3:7][labels[3:7] == 0]
    return F.cross_entropy(out, labels) + sum(first[index].square().sum() for index in range(len(first)))


@pytest.mark.parametrize(
    ("loss", "maker"),
    [
        (written_into_a_view, "mul_"),
        (written_into_a_shape, "__setitem__"),
        (changed_and_compared, "a function that writes in place"),
        (one_by_one, "__getitem__"),
    ],
)
def test_a_loss_that_is_written_into_out_of_sight_is_refused_by_name(loss, maker):
    with pytest.raises(SettingError, match=f"what {maker} makes of it can't be"):
        mixed(loss)
