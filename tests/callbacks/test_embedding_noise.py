"""Noise on the token embeddings of an existing network."""

import math

import pytest
import torch
from torch import nn

from lightning_reg.callbacks import EmbeddingNoise
from lightning_reg.functional.forward.token_noise import embedding_noise
from lightning_reg.settings import SettingError
from tests.conformance.draws import generator_of
from tests.conformance.problem import SomebodysModule, Textbook, loader, samples
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer

PADDING = 0


class Tokens(nn.Module):
    """Reads six numbers as tokens: how large each is."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 2, padding_idx=PADDING)

    def forward(self, inputs):
        tokens = torch.bucketize(inputs.contiguous(), torch.tensor([-0.5, 0.5]))
        return self.embedding(tokens).sum(2)


def with_tokens(model):
    model.frozen = Tokens()


def noisy(model):
    layer = model.frozen.embedding
    embed = layer.forward

    def forward(tokens):
        outputs = embed(tokens)
        if not model.training:
            return outputs
        noise = torch.empty_like(outputs).uniform_(generator=generator_of("EmbeddingNoise", model)) * 2 - 1
        rows = []
        for row, added, own in zip(outputs, noise, tokens, strict=True):
            length = max(sum(1 for token in own.tolist() if token != PADDING), 1)
            rows.append(row + 1.5 / math.sqrt(length * 2) * added)
        return torch.stack(rows)

    layer.forward = forward


CONFORMANCE = {
    "EmbeddingNoise": Technique(
        lambda: EmbeddingNoise(alpha=1.5, seed=3),
        lambda: EmbeddingNoise(alpha=0.0),
        Textbook(change=noisy),
        prepare=with_tokens,
    ),
}


def test_length_of_the_noise_is_that_of_the_paper():
    """Of L·d numbers uniform on [-1, 1], each of variance 1/3: on average α²/3."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.zeros(4000, 5, 8, dtype=torch.float64)
    noise = torch.empty_like(embeddings).uniform_(generator=generator)
    squared = embedding_noise(embeddings, noise, 3.0).square().sum((1, 2))
    assert (squared.mean() - 3.0**2 / 3).abs() < 4 * squared.std() / len(squared) ** 0.5


def test_padding_does_not_count():
    embeddings, noise = torch.zeros(2, 4, 9), torch.ones(2, 4, 9)
    out = embedding_noise(embeddings, noise, 6.0, lengths=torch.tensor([4, 1]))
    torch.testing.assert_close(out[:, 0, 0], torch.tensor([6 / math.sqrt(36), 6 / math.sqrt(9)]))


def fit(callback, **settings):
    module = SomebodysModule(**settings)
    quiet_trainer(callback, limit_train_batches=1).fit(module, loader(), loader())
    return module


def test_evaluation_is_left_alone_and_nothing_stays():
    module = fit(EmbeddingNoise(), prepare=with_tokens)
    inputs = samples().tensors[0]
    assert module.network.train()(inputs).equal(module.network.eval()(inputs))


@pytest.mark.parametrize(
    ("settings", "prepare", "message"),
    [
        ({}, None, "include must choose modules of type Embedding, but there is none; name modules that"),
        ({"include": ("network.frozen.embeding",)}, with_tokens, "matches no module"),
    ],
)
def test_a_network_without_embeddings_is_refused(settings, prepare, message):
    with pytest.raises(SettingError, match=message):
        fit(EmbeddingNoise(**settings), prepare=prepare)


def test_what_returns_no_tokens_is_refused():
    class Sums(nn.Module):
        def forward(self, inputs):
            return inputs.sum()

    def alone(model):
        model.unused = Sums()

    class Runs(SomebodysModule):
        def training_step(self, batch, batch_idx):
            self.network.unused(batch[0])
            return super().training_step(batch, batch_idx)

    with pytest.raises(SettingError, match=r"inputs of TokenNoise must have the shape \(N, T, E\) or \(T, E\)"):
        quiet_trainer(EmbeddingNoise(include=("network.unused",))).fit(Runs(prepare=alone), loader(), loader())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alpha": -1.0}, r"alpha must be in \[0, ∞\), but is -1.0"), ({"padding": -1}, "padding must be")],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        EmbeddingNoise(**settings)
