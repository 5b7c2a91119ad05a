"""Losses that change in the course of a fit: each step's is mixed, or refused."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import BatchMixing, ManifoldMixup, RegMixup
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.helpers import quiet_trainer

COUNT, CLASSES = 8, 3
INPUTS = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 0, 2])
MIXINGS = [
    BatchMixing(Mixup()),
    BatchMixing(Mixup(per_sample=True)),
    ManifoldMixup(layers=("layer",), include_input=False),
    RegMixup(),
]
mixings = pytest.mark.parametrize("mixing", MIXINGS, ids=["one weight", "weights", "hidden states", "beside"])


class Theirs(LightningModule):
    """Computes a loss of its own in each epoch, the last one's in all later ones."""

    def __init__(self, *losses):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, CLASSES)
        self.losses = losses

    def training_step(self, batch, batch_idx):
        loss = self.losses[min(self.current_epoch, len(self.losses) - 1)]
        return loss(self, self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ByHand(Theirs):
    def __init__(self, *losses):
        super().__init__(*losses)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def fit(mixing, module, max_epochs=2):
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=COUNT)
    quiet_trainer(*filter(None, [mixing]), max_epochs=max_epochs).fit(module, loader)


def of_torch(module, out, targets):
    return F.cross_entropy(out, targets)


def each(out, targets):
    return F.cross_entropy(out, targets, reduction="none")


def by_hand(module, out, targets):
    return -(out.log_softmax(1) * F.one_hot(targets, CLASSES)).sum(1).mean()


class Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(context, out, targets):
        context.save_for_backward(out, targets)
        return F.cross_entropy(out, targets)

    @staticmethod
    def backward(context, gradient):
        out, targets = context.saved_tensors
        return gradient * (out.softmax(1) - F.one_hot(targets, CLASSES)) / len(out), None


def in_a_function_of_theirs(module, out, targets):
    return Likelihood.apply(out, targets)


def beside_a_metric(module, out, targets):
    with torch.no_grad():
        module.log("cross_entropy", F.cross_entropy(out, targets))
    return by_hand(module, out, targets)


def beside_a_metric_of_copies(module, out, targets):
    module.log("cross_entropy", F.cross_entropy(out.detach(), targets))
    return by_hand(module, out, targets)


NOT_MIXED = [by_hand, in_a_function_of_theirs, beside_a_metric, beside_a_metric_of_copies]


@mixings
@pytest.mark.parametrize("loss", NOT_MIXED, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_a_loss_that_is_not_mixed_is_refused_whenever_it_comes(mixing, loss, later):
    module = Theirs(of_torch, loss) if later else Theirs(loss)
    with pytest.raises(SettingError, match=r"target_key 1\) with .* called none of cross_entropy, .* with them"):
        fit(mixing, module)
    assert module.current_epoch == later


def test_a_loss_by_hand_is_refused_under_manual_optimization_too():
    with pytest.raises(SettingError, match="with them, but mul of them"):
        fit(BatchMixing(Mixup()), ByHand(of_torch, by_hand))


@mixings
def test_a_batch_without_a_loss_of_its_labels_is_passed_over(mixing):
    """As where no sample is labeled, in the first step or a later one."""

    def nothing(module, out, targets):
        return 0 * out.sum()

    for losses in [(of_torch, nothing, of_torch), (nothing, of_torch)]:
        module = Theirs(*losses)
        fit(mixing, module, max_epochs=3)
        assert module.current_epoch == 3
        with pytest.raises(SettingError, match="called none of cross_entropy"):
            fit(mixing, Theirs(*losses, by_hand), max_epochs=len(losses) + 1)


def test_a_step_by_hand_may_train_another_part():
    def another(module, out, targets):
        return module.layer.weight.square().sum()

    module = ByHand(of_torch, another, of_torch)
    fit(BatchMixing(Mixup()), module, max_epochs=3)
    assert module.current_epoch == 3


def test_epochs_that_are_not_mixed_may_have_any_loss():
    module = Theirs(of_torch, by_hand)
    fit(BatchMixing(Mixup(), epochs=1), module)
    assert module.current_epoch == 2


def test_a_term_that_comes_later_is_warned_of_once():
    def with_a_term(module, out, targets):
        return of_torch(module, out, targets) + (F.one_hot(targets, CLASSES).float() @ module.layer.weight).mean()

    with pytest.warns(UserWarning, match="makes something differentiable of them by matmul") as told:
        fit(BatchMixing(Mixup()), Theirs(of_torch, with_a_term), max_epochs=4)
    assert sum("differentiable" in str(warning.message) for warning in told) == 1
