"""Mixup of hidden states, in a layer that each batch draws."""

import copy

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import AdversarialTraining, ManifoldMixup, SharpnessAwareMinimization
from lightning_reg.core.streams import random_stream
from lightning_reg.settings import SettingError
from tests.conformance.problem import SomebodysModule, Textbook, loader, weights_of
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer

LAYERS = ("network.norm", "network.act")


def drawn(model):
    """The minor weight and the place of a batch: -1 is the input."""
    where = (0, model.rank, model.epoch, model.batch)
    stream = random_stream(*where, "ManifoldMixup", 0)
    stream.random()
    share = stream.betavariate(0.8, 0.8)
    return min(share, 1 - share), random_stream(*where, "ManifoldMixup layer", 0).randrange(-1, len(LAYERS))


def with_the_one_before(rows, weight):
    share = torch.tensor(weight, dtype=rows.dtype)
    # By lerp, which rounds what autocast made in 16 bits once: (1 - w) x + w y would be rounded three times.
    return torch.stack([torch.lerp(rows[i], rows[i - 1], share) for i in range(len(rows))])


def mix(model, inputs, labels):
    weight, place = drawn(model)
    model.drawn = weight, place
    if place == -1:
        inputs = with_the_one_before(inputs, weight)

    def loss_of(logits):
        own, other = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels.roll(1))
        return (1 - weight) * own + weight * other

    return inputs, loss_of


def mixed_layers(model):
    for place, layer in enumerate((model.norm, model.act)):
        forward = layer.forward

        def mixing(inputs, place=place, forward=forward):
            outputs = forward(inputs)
            is_drawn = model.training and model.drawn[1] == place
            return with_the_one_before(outputs, model.drawn[0]) if is_drawn else outputs

        layer.forward = mixing


CONFORMANCE = {
    "ManifoldMixup": Technique(
        lambda: ManifoldMixup(alpha=0.8, layers=LAYERS),
        lambda: ManifoldMixup(prob=0.0, layers=LAYERS),
        Textbook(mix=mix, change=mixed_layers),
    ),
}


class Checkpointed(SomebodysModule):
    """Computes its features again in the backward pass."""

    def training_step(self, batch, batch_idx):
        features = checkpoint(self.network.features, batch[0], use_reentrant=False)
        return F.cross_entropy(self.network.head(features), batch[1])


class Twice(SomebodysModule):
    """Asks its network twice."""

    def training_step(self, batch, batch_idx):
        self.network(batch[0])
        return super().training_step(batch, batch_idx)


def fit(module, *callbacks, **settings):
    quiet_trainer(*callbacks, **settings).fit(module, loader(), loader())
    return weights_of(module)


def hidden(**settings):
    return ManifoldMixup(**{"alpha": 0.8, "layers": LAYERS, "include_input": False, **settings})


def test_what_is_computed_again_is_mixed_again():
    torch.testing.assert_close(fit(Checkpointed(), hidden()), fit(SomebodysModule(), hidden()))


def test_a_second_pass_draws_the_same_layer_and_weight():
    with_no_length = fit(SomebodysModule(), hidden(), SharpnessAwareMinimization(rho=0.0))
    torch.testing.assert_close(with_no_length, fit(SomebodysModule(), hidden()))


def test_layers_are_drawn_and_the_input_is_one_of_them():
    callback, places = ManifoldMixup(layers=LAYERS, seed=3), set()

    class Watches(SomebodysModule):
        def training_step(self, batch, batch_idx):
            places.add(callback.session.picked)
            return super().training_step(batch, batch_idx)

    fit(Watches(), callback, max_epochs=3)
    assert places == {None, 0, 1}


def test_compiled_code_is_made_once_whatever_is_drawn():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    module = SomebodysModule()
    module.network.compile(backend=backend)
    fit(module, hidden(), limit_val_batches=0, max_epochs=2)
    assert len(graphs) == 1


def tuples(model):
    model.act = nn.LSTM(12, 12, batch_first=True)


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (Twice(), {}, r"layers must be of modules that run once .*, but network.\w+ ran 2 times"),
        (SomebodysModule(), {"layers": ("network.unused",)}, "network.unused ran not at all"),
        (SomebodysModule(), {"layers": ()}, r"layers pattern '\*block\*' matches no module"),
    ],
)
def test_layers_that_do_not_run_once_are_refused(module, settings, message):
    with pytest.raises(SettingError, match=message):
        fit(module, hidden(**settings))


def test_layers_that_return_several_tensors_are_refused():
    class Recurrent(SomebodysModule):
        def training_step(self, batch, batch_idx):
            features, _ = self.network.act(self.network.first(batch[0]))
            return F.cross_entropy(self.network.head(features), batch[1])

    with pytest.raises(SettingError, match=r"network\.act returns one of tuple"):
        fit(Recurrent(prepare=tuples), hidden(layers=("network.act",)), limit_val_batches=0)


def test_nested_modules_are_mixed_behind_the_outermost():
    callback = ManifoldMixup(types=("Tanh", "Sequential"))

    def nested(model):
        model.act = nn.Sequential(nn.Tanh(), nn.Tanh())

    class Watches(SomebodysModule):
        def on_train_start(self):
            assert list(callback.session.layers) == ["network.act"]

    fit(Watches(prepare=nested), callback)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_batch_that_is_skipped_leaves_validation_alone():
    class Skips(SomebodysModule):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)

    shown = []
    for callbacks in ([hidden()], []):
        trainer = quiet_trainer(*callbacks)
        trainer.fit(Skips(), loader(), loader())
        shown.append(trainer.callback_metrics["val_loss"])
    assert torch.equal(*shown)


class ReadsTokens(SomebodysModule):
    """Its inputs are whole numbers, which nothing can be mixed into."""

    validation_step = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        return loss


def test_hidden_states_of_tokens_are_mixed():
    generator = torch.Generator().manual_seed(1)
    tokens, labels = torch.randint(9, (6, 3), generator=generator), torch.tensor([0, 1, 2, 2, 1, 0])
    module, callback = ReadsTokens(), ManifoldMixup(layers=("network.1",), include_input=False, seed=3)
    network, weights = copy.deepcopy(module.network), []

    class Notes(Callback):
        def on_train_batch_end(self, *args):
            weights.append(callback.current.minor_weight)

    quiet_trainer(callback, Notes()).fit(module, DataLoader(TensorDataset(tokens, labels), 6))
    hidden = network[:2](tokens)
    logits = network[2](with_the_one_before(hidden, float(weights[0])))
    ends = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels.roll(1))
    torch.testing.assert_close(module.losses[0], torch.lerp(*ends, weights[0]).detach())
    with pytest.raises(SettingError, match=r"include_input must be False where inputs can't be mixed, .* torch\.int64"):
        quiet_trainer(ManifoldMixup(layers=("network.1",))).fit(
            ReadsTokens(), DataLoader(TensorDataset(tokens, labels), 6)
        )


@pytest.mark.parametrize("types", ["Tanh", "torch.nn.Tanh", nn.Tanh])
def test_a_single_type_may_stand_alone_and_have_its_import_path(types):
    callback = ManifoldMixup(types=types)

    class Watches(SomebodysModule):
        def on_train_start(self):
            assert list(callback.session.layers) == ["network.act"]

    fit(Watches(), callback)


def test_bad_settings_are_refused_at_once():
    with pytest.raises(SettingError, match=r"alpha must be in \[0, ∞\), but is -1"):
        ManifoldMixup(alpha=-1)


def test_an_adversarial_pass_is_mixed_as_the_clean_one():
    """At a very small ε both passes have the same loss, and so have their gradients: nothing changes."""

    def weights(*beside):
        module = SomebodysModule()
        quiet_trainer(ManifoldMixup(layers=LAYERS, include_input=False), *beside).fit(module, loader(), loader())
        return weights_of(module)

    attacked = weights(AdversarialTraining(eps=1e-12, clip=None))
    for mixed, both in zip(weights(), attacked, strict=True):
        torch.testing.assert_close(both, mixed, rtol=1e-4, atol=1e-5)
