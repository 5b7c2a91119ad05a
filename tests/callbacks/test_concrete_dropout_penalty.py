import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_reg.callbacks import ConcreteDropoutPenalty
from lightning_reg.models import CNN, MLP
from lightning_reg.models.masks import KeyedMasks
from lightning_reg.nn.layers.concrete_dropout import concrete_layers
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, loader
from tests.helpers import quiet_trainer

# Validation has nothing to do with it.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")

INPUTS = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 3


def batches():
    return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=16)


def model(make=MLP, **settings):
    torch.manual_seed(0)
    network = {"hidden_sizes": [8, 8]} if make is MLP else {"channels": [4, 8], "layers_per_stage": 1}
    sgd = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1)}
    shape = {"input_shape": (1, 8, 8), "num_classes": 3}
    return make(dropout="concrete", drop_prob=0.2, **shape, **network, **sgd, **settings)


def term_by_hand(module, count):
    total = torch.zeros(())
    for layer in concrete_layers(module).values():
        p = layer.p_logit.sigmoid()
        entropy = -p * p.log() - (1 - p) * (1 - p).log()
        weights = layer.length_scale**2 / 2 / (1 - p) * layer.layer.weight.square().sum()
        total = total + (weights - layer.layer.weight.shape[1] * entropy) / count
    return total


@pytest.mark.parametrize("make", [MLP, CNN])
@pytest.mark.parametrize("attached", [[], [ConcreteDropoutPenalty()]], ids=["alone", "with_the_callback"])
def test_our_models_add_the_term_once(make, attached):
    module = model(make)
    by_hand = copy.deepcopy(module)
    trainer = quiet_trainer(*attached, max_epochs=1, log_every_n_steps=1)
    trainer.fit(module, batches())
    KeyedMasks(by_hand).start(0, 0, 0)  # process, epoch and batch
    loss = F.cross_entropy(by_hand(INPUTS), LABELS)
    term = term_by_hand(by_hand, 16)
    (loss + term).backward()
    assert len(concrete_layers(module)) == 2
    for trained, start in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(trained, start - 0.1 * start.grad)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert trainer.callback_metrics["penalty/concrete_dropout"].item() == pytest.approx(term.item(), rel=1e-5)
    assert module.adds_concrete_penalty


def test_rates_are_logged():
    trainer = quiet_trainer(ConcreteDropoutPenalty(num_samples=100), max_epochs=1, log_every_n_steps=1)
    module = model()
    trainer.fit(module, batches())
    rate = trainer.callback_metrics["dropout/network.3"].item()
    assert rate == pytest.approx(concrete_layers(module)["network.3"].p)


def test_weight_decay_spares_the_rate():
    groups = {group["name"]: group["params"] for group in model(weight_decay=0.1).configure_optimizers().param_groups}
    assert sum(parameter.ndim == 0 for parameter in groups["no_decay"]) == 2
    assert all(parameter.ndim == 2 for parameter in groups["decay"])


def test_a_module_that_learns_no_rate_is_refused():
    with pytest.raises(SettingError, match="must have a layer of ConcreteDropout, but the module has none"):
        quiet_trainer(ConcreteDropoutPenalty()).fit(SomebodysModule(), loader())


def test_a_number_of_samples_that_nobody_knows_has_to_be_given():
    class Endless(IterableDataset):
        def __iter__(self):
            yield from zip(INPUTS, LABELS, strict=True)

    with pytest.raises(SettingError, match="num_samples must be given"):
        quiet_trainer(ConcreteDropoutPenalty()).fit(model(), DataLoader(Endless(), batch_size=8))
    module = model()
    quiet_trainer(ConcreteDropoutPenalty(num_samples=16), max_epochs=1).fit(module, DataLoader(Endless(), batch_size=8))
    with pytest.raises(SettingError, match="num_samples must be a whole number of at least 1, but is 0"):
        ConcreteDropoutPenalty(num_samples=0)


def test_other_modules_learn_their_rate_with_it_and_only_lose_it_without():
    class Learns(SomebodysModule):
        def __init__(self):
            super().__init__()
            from lightning_reg.nn import ConcreteDropout

            self.network.head = ConcreteDropout(nn.Linear(12, 3), p=0.1)

    rates = []
    for attached in ([], [ConcreteDropoutPenalty(num_samples=4)]):
        module = Learns()
        torch.manual_seed(0)
        quiet_trainer(*attached, max_epochs=10).fit(module, loader())
        rates.append(module.network.head.p)
    assert rates[0] < rates[1]
