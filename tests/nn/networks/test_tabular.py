import pytest
import torch
from torch import nn

from lightning_reg.functional.preparation import one_hot_columns
from lightning_reg.models import MLP
from lightning_reg.nn import TabularEmbedding, dense_network
from lightning_reg.settings import SettingError

SIZES = [3, 4]
CODES = torch.tensor([[1, 3], [2, 0], [0, 1]])
NUMBERS = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


def test_equals_an_embedding_for_each_column():
    layer = TabularEmbedding(2, SIZES, embed_dim=5)
    tables = layer.vectors.weight.split(SIZES)
    expected = [NUMBERS, *(nn.functional.embedding(CODES[:, k], table) for k, table in enumerate(tables))]
    output = layer(torch.cat([NUMBERS, CODES.float()], 1))
    assert torch.equal(output, torch.cat(expected, 1))
    assert output.shape[1] == layer.out_features


def test_one_hot_blocks_give_what_codes_give_and_the_same_gradient():
    layer = TabularEmbedding(2, SIZES).double()
    gradients = []
    outputs = []
    for categories in (CODES.double(), one_hot_columns(CODES, SIZES).double()):
        layer.zero_grad()
        outputs.append(layer(torch.cat([NUMBERS.double(), categories], 1)))
        outputs[-1].square().sum().backward()
        gradients.append(layer.vectors.weight.grad.clone())
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-15)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


def test_what_was_never_seen_says_nothing_at_first():
    output = TabularEmbedding(1, SIZES)(torch.zeros(1, 3))
    assert output.eq(0).all()


@pytest.mark.parametrize("init", ["auto", "small_normal"])
def test_whatever_the_initialization_what_was_never_seen_says_nothing(init):
    network = dense_network((3,), 2, hidden_sizes=[4], categories=SIZES, init=init)
    assert network[0](torch.zeros(1, 3)).eq(0).all()


def test_weight_decay_spares_the_vectors():
    module = MLP(input_shape=(3,), num_classes=2, categories=[3, 4], weight_decay=0.1)
    spared = module.configure_optimizers().param_groups[1]["params"]
    assert any(parameter is module.network[0].vectors.weight for parameter in spared)


def test_compiled_it_gives_the_same():
    network = dense_network((4,), 2, hidden_sizes=[8], categories=SIZES)
    inputs = torch.cat([NUMBERS, CODES.float()], 1)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), network(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TabularEmbedding(-1, [2]), "num_numbers must be a whole number of at least 0, but is -1"),
        (lambda: TabularEmbedding(1, []), "cardinalities must name at least one column, but is empty"),
        (lambda: TabularEmbedding(1, 5), "cardinalities must be a list, but is 5"),
        (lambda: TabularEmbedding(1, [1]), "each of cardinalities must be a whole number of at least 2, but is 1"),
        (lambda: TabularEmbedding(1, [2], 0), "embed_dim must be a whole number of at least 1, but is 0"),
        (
            lambda: TabularEmbedding(1, SIZES)(torch.zeros(1, 4)),
            "inputs must have 3 columns, 2 of them codes, or 8 with one-hot blocks, but have 4",
        ),
        (
            lambda: MLP(input_shape=(1, 8, 8), num_classes=2, categories=[2]),
            r"input_shape must be \(columns,\) of a table with at least 1 columns, .* but is \(1, 8, 8\)",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()
