"""Training on mixed losses is that of a loop by hand, to the precision of float64."""

import functools

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import BatchMixing
from lightning_reg.transforms import Mixup
from tests.helpers import quiet_trainer

COUNT, SIZE, CLASSES, EPOCHS = 24, 8, 3, 2
GENERATOR = torch.Generator().manual_seed(0)
INPUTS, NUMBERS = (torch.randn(COUNT, size, generator=GENERATOR, dtype=torch.float64) for size in (4, CLASSES))
LABELS = torch.arange(COUNT) ** 2 % 7 % CLASSES
CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
TOLERANCE = {"rtol": 0, "atol": 1e-12}


class Recorded(Mixup):
    """Keeps the weights of the partners of all batches."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.shares = []

    def drawn(self, inputs, *, stream):
        draw = super().drawn(inputs, stream=stream)
        self.shares.append(None if draw is None else draw.minor_weight.double().expand(len(inputs)))
        return draw


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


class Theirs(LightningModule):
    def __init__(self, loss):
        super().__init__()
        self.network, self.loss, self.seen = network(), loss, []

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.network(batch[0]), batch[1])
        self.seen.append(loss.detach())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def focal(out, labels):
    losses = F.cross_entropy(out, labels, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def looked_up(look_up):
    """Cross entropy with weights of the classes that are looked up by the labels, or by what is made of them."""
    return lambda out, labels: (F.cross_entropy(out, labels, reduction="none") * look_up(labels)).mean()


LOOKUPS = {
    "index": lambda labels: CLASS_WEIGHTS[labels],
    "indices": lambda labels: CLASS_WEIGHTS.expand(2, CLASSES)[1, labels],
    "of a column": lambda labels: CLASS_WEIGHTS[labels.unsqueeze(1)].squeeze(1),
    "gather": lambda labels: CLASS_WEIGHTS.gather(0, labels),
    "gather_by_name": lambda labels: torch.gather(input=CLASS_WEIGHTS, dim=0, index=labels),
    "index_select": lambda labels: CLASS_WEIGHTS.index_select(0, labels),
    "take": lambda labels: torch.take(CLASS_WEIGHTS, labels),
    "take_along_dim": lambda labels: CLASS_WEIGHTS.take_along_dim(labels, 0),
    "embedding": lambda labels: F.embedding(labels, CLASS_WEIGHTS.unsqueeze(1)).squeeze(1),
    "Embedding": lambda labels: nn.Embedding.from_pretrained(CLASS_WEIGHTS.unsqueeze(1))(labels).flatten(),
    "twice": lambda labels: CLASS_WEIGHTS.flip(0)[torch.tensor([2, 1, 0])[labels]],
}


# The same losses without torch's: a value for each sample, and what their sum is divided by.


def surprises(out, labels):
    """The negative log-likelihood of each sample."""
    return torch.stack([row.exp().sum().log() - row[label] for row, label in zip(out, labels, strict=True)])


def weighted_terms(out, labels):
    weights = torch.stack([CLASS_WEIGHTS[label] for label in labels])
    return weights * surprises(out, labels), weights.sum()


def terms_by_class(out, labels):
    return weighted_terms(out, labels)[0], len(out)


def focal_terms(out, labels):
    likelihoods = (-surprises(out, labels)).exp()
    return -((1 - likelihoods) ** 2) * likelihoods.log(), len(out)


def squared_terms(out, numbers):
    return ((out - numbers) ** 2).sum(1), out.numel()


def by_hand(terms, targets, shares):
    """Weights and losses of a loop with λ·L(a) + (1 - λ)·L(b), λ being one minus the partner's share."""
    model, losses = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batches = list(zip(INPUTS.split(SIZE), targets.split(SIZE), strict=True)) * EPOCHS
    for (inputs, own), share in zip(batches, shares, strict=True):
        if share is None:
            values, divisor = terms(model(inputs), own)
            loss = values.sum() / divisor
        else:
            others, partners = (torch.cat((part[-1:], part[:-1])) for part in (inputs, own))
            out = model((1 - share)[:, None] * inputs + share[:, None] * others)
            ends = terms(out, own), terms(out, partners)
            loss = sum(
                (part * values).sum() / divisor
                for part, (values, divisor) in zip((1 - share, share), ends, strict=True)
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return list(model.parameters()), losses


@pytest.mark.parametrize("per_sample", [False, True], ids=["one_weight", "a_weight_for_each_sample"])
@pytest.mark.parametrize(
    ("loss", "terms", "targets"),
    [
        (functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS), weighted_terms, LABELS),
        *((looked_up(look_up), terms_by_class, LABELS) for look_up in LOOKUPS.values()),
        (focal, focal_terms, LABELS),
        (F.mse_loss, squared_terms, NUMBERS),
    ],
    ids=["class_weights", *LOOKUPS, "focal", "squared_error"],
)
def test_training_on_mixed_losses_is_that_of_a_loop_by_hand(loss, terms, targets, per_sample):
    module, mix = Theirs(loss), Recorded(alpha=1.0, prob=0.8, per_sample=per_sample)
    data = DataLoader(TensorDataset(INPUTS, targets), batch_size=SIZE)
    quiet_trainer(BatchMixing(mix, seed=0), max_epochs=EPOCHS).fit(module, data)
    assert {share is None for share in mix.shares} == {True, False}
    weights, losses = by_hand(terms, targets, mix.shares)
    torch.testing.assert_close(module.seen, losses, **TOLERANCE)
    torch.testing.assert_close(list(module.parameters()), weights, **TOLERANCE)
