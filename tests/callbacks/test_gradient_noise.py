"""Noise on gradients leaves alone what isn't trained: the row of an embedding that belongs to padding."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from lightning_reg.callbacks import GradientNoise, L2Penalty
from tests.helpers import quiet_trainer


class Tokens(LightningModule):
    def __init__(self, embedding):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = embedding
        self.head = nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        vectors = self.embedding(batch)
        return self.head(vectors.mean(1) if vectors.ndim == 3 else vectors).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(embedding, *techniques):
    """Returns the embedding's weight before and after a fit."""
    before = embedding.weight.detach().clone()
    module = Tokens(embedding)
    tokens = torch.randint(0, 5, (4, 2, 4), generator=torch.Generator().manual_seed(1))
    quiet_trainer(*techniques).fit(module, DataLoader(tokens, batch_size=None))
    return before, module.embedding.weight.detach()


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_padding_gets_no_noise(kind, distribution):
    before, after = fit(kind(5, 6, padding_idx=-2), GradientNoise(eta=0.1, distribution=distribution))
    changed = (before != after).any(1)
    assert changed.tolist() == [True, True, True, False, True]


def test_padding_of_a_parametrized_embedding_gets_no_noise():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    embedding = nn.Embedding(5, 6, padding_idx=0)
    parametrize.register_parametrization(embedding, "weight", Half())
    before, after = fit(embedding, GradientNoise(eta=0.1))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_what_a_penalty_adds_to_padding_stays():
    weight = torch.ones(5, 6)
    embedding = nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=0)
    _, after = fit(embedding, L2Penalty(weight=0.5), GradientNoise(eta=0.1))
    torch.testing.assert_close(after[0], torch.full((6,), 0.95**4), rtol=0, atol=1e-6)  # four steps


def test_noise_elsewhere_is_the_same_with_and_without_padding():
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    results = []
    for padding_idx in (None, 0):
        embedding = nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=padding_idx)
        module = Tokens(embedding)
        quiet_trainer(GradientNoise(eta=0.1)).fit(module, DataLoader(torch.tensor([[[1, 2], [3, 4]]]), batch_size=None))
        results.append(module.embedding.weight.detach())
    assert torch.equal(results[0][1:], results[1][1:])
