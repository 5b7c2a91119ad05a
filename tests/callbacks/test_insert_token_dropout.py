"""Dropout of tokens before modules of somebody else's transformer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import DropoutSchedule, InsertTokenDropout
from lightning_reg.settings import SettingError
from tests.callbacks.somebodys import Somebodys, fit, vit
from tests.conformance.draws import uniform
from tests.conformance.problem import SomebodysModule, Textbook
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer


class Tokens(nn.Module):
    """Takes six numbers for tokens, the first for a prefix."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.linspace(-1, 1, 12).view(6, 2))
        self.mix = nn.Sequential(nn.Linear(2, 6), nn.Tanh())

    def forward(self, inputs):
        return self.mix(inputs.unsqueeze(2) + self.position).mean(1)


def with_tokens(model):
    model.frozen = Tokens()


def fewer_tokens(model):
    """Of five tokens the two with the smallest numbers, and the prefix."""
    mix = model.frozen.mix
    run = mix.forward

    def forward(tokens):
        if not model.training:
            return run(tokens)
        numbers = uniform("InsertTokenDropout", model, (len(tokens), 5)).tolist()
        places = [[0, *sorted(sorted(range(1, 6), key=lambda place: row[place - 1])[:2])] for row in numbers]
        return run(torch.stack([sample[chosen] for sample, chosen in zip(tokens, places, strict=True)]))

    mix.forward = forward


CONFORMANCE = {
    "InsertTokenDropout": Technique(
        lambda: InsertTokenDropout(p=0.5, include=("network.frozen.mix",), seed=3),
        lambda: InsertTokenDropout(p=0.0, include=("network.frozen.mix",)),
        Textbook(change=fewer_tokens),
        prepare=with_tokens,
    ),
}


def shapes_at(module):
    """Notes what a module is given."""
    seen = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    return seen


def test_torchvisions_transformer_keeps_its_class_token_and_evaluates_all():
    module = Somebodys(vit)
    layers = module.net.encoder.layers
    seen = shapes_at(layers[0])
    fit(None, InsertTokenDropout(p=0.5, include=("net.encoder.layers",)), module=module)
    assert set(seen) == {(4, 3, 16)}  # of four patches two, and the class token
    module.net.eval()(torch.zeros(4, 3, 16, 16))
    assert seen[-1] == (4, 5, 16)
    assert not layers._forward_pre_hooks


class Reader(nn.Module):
    """Sentences of eight words and fewer, of which torch's encoder is told which are padding."""

    def __init__(self, batch_first=True, mask=None, positional=False):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.batch_first, self.mask, self.positional = batch_first, mask, positional
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, 3)

    def forward(self, words):
        tokens, padding = self.embedding(words), words == 0
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        if self.positional:
            outputs = self.encoder(tokens, self.mask, padding)
        else:
            outputs = self.encoder(tokens, mask=self.mask, src_key_padding_mask=padding)
        outputs = outputs if self.batch_first else outputs.transpose(0, 1)
        return self.head(outputs[:, 0])


def read(callback, words=None, **settings):
    module = Somebodys(lambda: Reader(**settings))
    encoder, seen = module.net.encoder, []
    encoder.layers[0].register_forward_pre_hook(
        lambda _, inputs, named: seen.append((inputs[0], named["src_key_padding_mask"])), with_kwargs=True
    )
    if words is None:
        words = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0]])
    data = DataLoader(TensorDataset(words, torch.arange(len(words)) % 3), batch_size=len(words))
    quiet_trainer(callback, max_epochs=1).fit(module, data)
    return module, seen


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("positional", [True, False])
def test_a_mask_of_padding_is_shortened_with_its_tokens_and_padding_counts_for_nobody(batch_first, positional):
    callback = InsertTokenDropout(p=0.5, include=("net.encoder",), num_prefix_tokens=0, batch_first=batch_first, seed=0)
    module, [(tokens, mask)] = read(callback, batch_first=batch_first, positional=positional)
    assert tokens.shape == ((3, 4, 4) if batch_first else (4, 3, 4))
    assert mask.shape == (3, 4)
    is_padding = mask if mask.dtype == torch.bool else mask == -torch.inf
    assert (~is_padding).sum(1).tolist() == [4, 2, 1]
    # Embeddings of padding are zeros.
    rows = tokens if batch_first else tokens.transpose(0, 1)
    assert torch.equal(rows.detach().abs().sum(2) == 0, is_padding)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("mask", [torch.zeros(8, 8), torch.zeros(8, 8, dtype=torch.bool)])
@pytest.mark.parametrize("samples", [3, 8])
def test_a_mask_of_pairs_is_refused(mask, samples):
    words = torch.randint(1, 9, (samples, 8))
    callback = InsertTokenDropout(include=("net.encoder",))
    with pytest.raises(
        SettingError, match=r"no mask of pairs of tokens, but net.encoder takes mask of the shape \(8, 8"
    ):
        read(callback, words, mask=mask)


class Biased(nn.Module):
    """Attention with a bias of positions, as T5 hands it from block to block."""

    def forward(self, tokens, position_bias):
        return (tokens @ tokens.mT + position_bias[:, 0]).softmax(2) @ tokens


class HandsOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = Biased(), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(self.attention(tokens, torch.zeros(1, 1, tokens.shape[1], tokens.shape[1]))[:, 0])


def test_a_bias_of_pairs_is_refused():
    module = Somebodys(HandsOn)
    data = DataLoader(TensorDataset(torch.rand(6, 5, 4), torch.arange(6) % 3), batch_size=3)
    with pytest.raises(SettingError, match=r"no bias of pairs of tokens, but net.attention takes position_bias of the"):
        quiet_trainer(InsertTokenDropout(include=("net.attention",)), max_epochs=1).fit(module, data)


class PredictsEachWord(SomebodysModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))

    validation_step = None

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]).flatten(0, 1), batch[1].flatten())


def test_a_network_that_needs_all_tokens_is_refused():
    data = DataLoader(TensorDataset(torch.randint(9, (6, 8)), torch.randint(3, (6, 8))), batch_size=3)
    with pytest.raises(SettingError, match=r"any number of tokens .* fails with ValueError: Expected input"):
        quiet_trainer(InsertTokenDropout(include=("network.1",))).fit(PredictsEachWord(), data)


@pytest.mark.parametrize(
    ("settings", "reader", "message"),
    [
        ({"include": ("net.head",)}, {}, r"include must .* take tokens .*, but net.head takes float32 of .* \(3, 4\)"),
        ({"include": ("net.embedding",)}, {}, r"but net.embedding takes int64 of the shape \(3, 8\)"),
        ({"include": ("net.encoder",)}, {"batch_first": False}, "batch_first must be False, as net.encoder has it"),
        ({"include": ("net.encodr",)}, {}, "matches no module"),
    ],
)
def test_a_module_without_tokens_is_refused(settings, reader, message):
    with pytest.raises(SettingError, match=message):
        read(InsertTokenDropout(**settings), **reader)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "include or types must say behind which modules"),
        ({"p": -0.1, "include": ("*",)}, r"p must be in \[0, 1\]"),
        ({"num_prefix_tokens": -1, "include": ("*",)}, "num_prefix_tokens must be"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        InsertTokenDropout(**settings)


def test_a_schedule_moves_its_rate():
    module = Somebodys(vit)
    seen = shapes_at(module.net.encoder.layers[0])
    callbacks = [InsertTokenDropout(p=0.5, include=("net.encoder.layers",)), DropoutSchedule()]
    fit(None, *callbacks, module=module, max_epochs=2)
    assert {shape[1] for shape in seen[:2]} == {5}
    assert {shape[1] for shape in seen[2:]} == {3}
