"""Mixed losses of which something is made before the step returns them: mixed right, or refused by name."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_reg.callbacks import BatchMixing, ConfidencePenalty
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.callbacks.mixed import Recorded
from tests.helpers import quiet_trainer

COUNT, CLASSES = 8, 3
INPUTS = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 0, 2])


class Theirs(LightningModule):
    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, CLASSES)
        self.spread = nn.Parameter(torch.tensor(0.3))
        self.mean = MeanMetric()
        self.loss, self.seen = loss, []

    def training_step(self, batch, batch_idx):
        value = self.loss(self, self.layer(batch[0]), batch[1])
        self.seen.append(value.detach())
        return value

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)  # so that the loss can be computed again


def mixed(loss, *callbacks, prob=1.0, per_sample=False, labels=LABELS):
    """A module after one batch, and its inputs and the weight of the partners in it."""
    mix = Recorded(alpha=1.0, prob=prob, per_sample=per_sample)
    module = Theirs(loss)
    loader = DataLoader(TensorDataset(INPUTS, labels), batch_size=COUNT)
    quiet_trainer(BatchMixing(mix, seed=3), *callbacks).fit(module, loader)
    return module, mix.latest.change(INPUTS) if mix.latest else INPUTS, mix.latest and mix.latest.minor_weight


def each(out, targets):
    return F.cross_entropy(out, targets, reduction="none")


def focal(_, out, targets):
    losses = each(out, targets)
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def root(_, out, targets):
    return F.mse_loss(out, F.one_hot(targets, CLASSES).float()).sqrt()


def hardest(_, out, targets):
    return each(out, targets).topk(3).values.mean()


def hardest_again(_, out, targets):
    _, chosen = each(out.detach(), targets).topk(3)
    return F.cross_entropy(out[chosen], targets[chosen])


def above_a_threshold(_, out, targets):
    losses = each(out, targets)
    return losses[losses > losses.detach().median()].sum() / COUNT


def masked_mean(_, out, targets):
    mask = (targets != 1).float()
    return (each(out, targets) * mask).sum() / mask.sum()


def picked_by_label(_, out, targets):
    return each(out, targets)[targets != 1].mean()


def by_class(_, out, targets):
    """A mean of means, stacked."""
    losses = each(out, targets)
    return torch.stack([losses[targets == label].mean() for label in range(CLASSES)]).max()


def learned_weight(module, out, targets):
    return F.cross_entropy(out, targets).sqrt() * (-module.spread).exp() + module.spread


def beside_others(module, out, targets):
    return torch.logaddexp(F.cross_entropy(out, targets), out.square().mean()) + module.layer.weight.square().sum()


def measured(module, out, targets):
    loss = F.cross_entropy(out, targets)
    module.mean(loss)
    module.log("train_loss", loss)
    module.log("perplexity", loss.exp())
    module.log("mean", module.mean, on_step=False, on_epoch=True)
    assert loss.item() > 0
    return loss**2


def collected(_, out, targets):
    """Written into a tensor that there was before, and so by linear functions alone."""
    losses = torch.zeros(2)
    losses[0] = F.cross_entropy(out, targets)
    losses += 1
    total = losses.sum()
    total /= 2
    return total


def by_likelihood(_, out, targets):
    """A focal weight that is looked up in the predictions."""
    likelihoods = out.detach().softmax(1).gather(1, targets[:, None]).squeeze(1)
    return ((1 - likelihoods) ** 2 * each(out, targets)).mean()


def of_superclasses(_, out, targets):
    return F.cross_entropy(out, torch.tensor([2, 0, 2])[targets])


def of_prototypes(_, out, targets):
    return F.mse_loss(out, torch.eye(CLASSES).cumsum(0)[targets])


MADE = [
    focal,
    root,
    hardest,
    hardest_again,
    above_a_threshold,
    masked_mean,
    picked_by_label,
    by_class,
    by_likelihood,
    of_superclasses,
    of_prototypes,
    learned_weight,
    beside_others,
    measured,
    collected,
]


class Silent:
    """In the place of the module where a loss is computed by hand."""

    def __init__(self, module):
        self.layer, self.spread = module.layer, module.spread
        self.mean, self.log = lambda *_: None, lambda *_, **__: None


@pytest.mark.parametrize("loss", MADE, ids=lambda loss: loss.__name__)
def test_what_is_made_of_a_loss_lies_between_its_two_values(loss):
    module, inputs, weight = mixed(loss)
    given = {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }
    out = module.layer(inputs)
    ends = [loss(Silent(module), out, targets) for targets in (LABELS, LABELS.roll(1))]
    expected = torch.lerp(*ends, weight)
    assert not torch.isclose(*ends)
    torch.testing.assert_close(module.seen[0], expected.detach(), rtol=1e-5, atol=1e-6)
    module.zero_grad()
    expected.backward()
    for name, gradient in given.items():
        torch.testing.assert_close(gradient, module.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", MADE, ids=lambda loss: loss.__name__)
def test_a_batch_that_is_not_mixed_is_trained_on_to_the_bit(loss):
    module, _, weight = mixed(loss, prob=0.0)
    assert weight is None
    assert torch.equal(module.seen[0], loss(Silent(module), module.layer(INPUTS), LABELS).detach())


def test_a_focal_loss_with_a_weight_for_each_sample():
    module, inputs, weight = mixed(focal, per_sample=True)
    out = module.layer(inputs)
    ends = [(1 - (-losses).exp()) ** 2 * losses for losses in (each(out, LABELS), each(out, LABELS.roll(1)))]
    expected = ((1 - weight) * ends[0] + weight * ends[1]).mean()
    torch.testing.assert_close(module.seen[0], expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ignored", [-100, 255])
def test_ignored_labels_may_lie_anywhere_outside_of_the_classes(ignored):
    """With a weight for each class, and a share for each sample."""
    weights = torch.tensor([1.0, 2.0, 3.0])
    labels = torch.where(torch.arange(COUNT) % 4 == 0, ignored, LABELS)

    def weighted(_, out, targets):
        return F.cross_entropy(out, targets, weight=weights, ignore_index=ignored)

    module, inputs, shares = mixed(weighted, per_sample=True, labels=labels)
    log_probabilities = module.layer(inputs).detach().double().log_softmax(1)
    expected = 0
    for share, targets in ((1 - shares, labels), (shares, labels.roll(1))):
        kept = [index for index in range(COUNT) if targets[index] != ignored]
        of_classes = [weights[targets[index]] for index in kept]
        terms = [-share[index] * log_probabilities[index, targets[index]] for index in kept]
        expected += sum(one * term for one, term in zip(of_classes, terms, strict=True)) / sum(of_classes)
    assert module.seen[0].item() == pytest.approx(float(expected), rel=1e-5)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_, value):
        return 2 * value

    @staticmethod
    def backward(_, gradient):
        return 2 * gradient


def written_and_rooted(_, out, targets):
    loss = F.cross_entropy(out, targets)
    loss += 1
    return loss.sqrt()


def in_a_function_of_theirs(_, out, targets):
    return Doubled.apply(F.cross_entropy(out, targets))


def dropped(_, out, targets):
    return F.dropout(each(out, targets), 0.5).mean()


def recomputed(reentrant):
    def loss(_, out, targets):
        return checkpoint(F.cross_entropy, out, targets, use_reentrant=reentrant)

    return loss


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (written_and_rooted, {}, "what sqrt makes of it can't be"),
        (dropped, {}, "what dropout makes of it can't be"),
        (in_a_function_of_theirs, {}, "code that isn't torch's, is compiled or is checkpointed makes of it can't be"),
        (root, {"per_sample": True}, "what sqrt makes of it can't be"),
        (hardest, {"per_sample": True}, "what topk makes of it can't be"),
        (masked_mean, {"per_sample": True}, "what __truediv__ makes of it can't be|what div makes of it can't be"),
        (recomputed(True), {}, "the loss must be computed outside of activation checkpointing"),
        (recomputed(False), {}, "the loss must be computed outside of activation checkpointing"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(loss, settings, message):
    with pytest.raises(SettingError, match=message):
        mixed(loss, **settings)


def test_under_manual_optimization_the_loss_that_goes_backward_is_refused():
    class Manual(Theirs):
        def __init__(self):
            super().__init__(written_and_rooted)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))

    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=COUNT)
    with pytest.raises(SettingError, match="what sqrt makes of it can't be"):
        quiet_trainer(BatchMixing(Mixup())).fit(Manual(), loader)


def test_a_focal_loss_is_mixed_beside_a_term_of_ours():
    for outside in (True, False):
        callbacks = [ConfidencePenalty(weight=0.1)]
        module, inputs, weight = mixed(focal, *callbacks) if outside else mixed(focal)
        ends = [focal(module, module.layer(inputs), targets) for targets in (LABELS, LABELS.roll(1))]
        torch.testing.assert_close(module.seen[0], torch.lerp(*ends, weight).detach(), rtol=1e-5, atol=1e-6)


def test_batches_for_inference_are_mixed_as_others_are():
    class Encoded(Theirs):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            with torch.inference_mode():
                return [batch[0] + 0, batch[1] + 0]

        def training_step(self, batch, batch_idx):
            return super().training_step([part.clone() for part in batch], batch_idx)

    losses = []
    for kind in (Theirs, Encoded):
        module = kind(lambda _, out, targets: F.cross_entropy(out, targets))
        loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=COUNT)
        quiet_trainer(BatchMixing(Mixup(), seed=3)).fit(module, loader)
        losses += module.seen
    assert torch.equal(*losses)
