"""torch.fx records our layers as it records torch's own, as one call made anew each time; torch.func maps them."""

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call, vmap

from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.nn import (
    Attention,
    ChannelsFirstLayerNorm,
    ConcreteDropout,
    DropBlock,
    Dropout,
    FilterResponseNorm,
    GaussianDropout,
    GaussianNoise,
    GhostBatchNorm,
    LayerDrop,
    ShakeDrop,
    SpatialDropout,
    StochasticDepth,
    TokenDropout,
    VariationalDropout,
    WeightDropLSTM,
    ZoneoutLSTM,
    convolutional_network,
    dense_network,
    drop_connected,
    recurrent_network,
    transformer_network,
)

IMAGES, SEQUENCES, ROWS = (2, 3, 8, 8), (2, 4, 6), (2, 6)

LAYERS = {
    "dropout": (lambda: Dropout(0.5), ROWS),
    "spatial": (lambda: SpatialDropout(0.5), IMAGES),
    "variational": (lambda: VariationalDropout(0.5), SEQUENCES),
    "stochastic depth": (lambda: StochasticDepth(0.5), ROWS),
    "ShakeDrop": (lambda: ShakeDrop(0.5), ROWS),
    "LayerDrop": (lambda: LayerDrop(nn.Linear(6, 6), nn.Linear(6, 6), p=0.5), ROWS),
    "token dropout": (lambda: TokenDropout(0.5), SEQUENCES),
    "Gaussian dropout": (lambda: GaussianDropout(0.5), ROWS),
    "Gaussian noise": (lambda: GaussianNoise(0.5), ROWS),
    "drop block": (lambda: DropBlock(0.5, block_size=2), IMAGES),
    "drop connect": (lambda: drop_connected(nn.Linear(6, 2), 0.5), ROWS),
    "drop connect of a convolution": (lambda: drop_connected(nn.Conv2d(3, 2, 3), 0.5), IMAGES),
    "concrete": (lambda: ConcreteDropout(nn.Linear(6, 2)), ROWS),
    "ghost batches": (lambda: GhostBatchNorm(3, ghost_batch_size=2), IMAGES),
    "filter response": (lambda: FilterResponseNorm(3), IMAGES),
    "channels first": (lambda: ChannelsFirstLayerNorm(3), IMAGES),
    "dropped recurrent weights": (lambda: WeightDropLSTM(6, 4, p=0.5, batch_first=True), SEQUENCES),
    "zoneout": (lambda: ZoneoutLSTM(6, 4, p=0.5, batch_first=True), SEQUENCES),
    "attention": (lambda: Attention(embed_dim=6, num_heads=2, attention_drop_prob=0.1), SEQUENCES),
    "MLP": (lambda: dense_network((6,), 3, hidden_sizes=(8,), drop_prob=0.2), ROWS),
    "residual MLP": (
        lambda: dense_network((6,), 3, hidden_sizes=(8, 8), residual=True, stochastic_depth_prob=0.5),
        ROWS,
    ),
    "CNN": (
        lambda: convolutional_network((3, 8, 8), 3, channels=(4,), dropout="drop_block", drop_prob=0.2),
        IMAGES,
    ),
    "RNN": (lambda: recurrent_network((4, 6), 3, hidden_size=5, drop_prob=0.2), SEQUENCES),
    "transformer": (
        lambda: transformer_network((3, 8, 8), 3, embed_dim=8, depth=2, num_heads=2, stochastic_depth_prob=0.2),
        IMAGES,
    ),
}


def output(module, inputs):
    torch.manual_seed(2)
    result = module(inputs)
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_traced_in_training_computes_what_the_layers_do_in_both_modes(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    network = nn.Sequential(make()).train()
    graph = fx.symbolic_trace(network)
    inputs = torch.randn(shape)
    for training in (True, False):
        network.train(training)
        graph.train(training)
        assert torch.equal(output(graph, inputs), output(network, inputs))


def test_the_parts_of_a_block_stay_visible():
    network = transformer_network((3, 8, 8), 3, embed_dim=8, depth=1, num_heads=2)
    targets = {node.target for node in fx.symbolic_trace(network).graph.nodes}
    assert any("attention" in str(target) for target in targets)


# The others draw nothing, or have what torch can't map over: recurrences, or running statistics.
MAPPED = [*list(LAYERS)[: list(LAYERS).index("concrete") + 1], "MLP", "residual MLP"]


@pytest.mark.parametrize("has_stream", [False, True])
@pytest.mark.parametrize("name", MAPPED)
def test_vmap_has_its_say_in_whether_samples_share_what_is_drawn(name, has_stream):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    module = make()
    streams = {layer: NoiseStream() for layer in module.modules() if hasattr(layer, "stream")} if has_stream else {}
    for layer, stream in streams.items():
        layer.stream = stream
    inputs = torch.randn(1, *shape[1:]).expand(8, 1, *shape[1:])
    state = dict(module.state_dict(keep_vars=True))
    spread = {}
    for randomness in ("same", "different"):
        mapped = vmap(lambda row: functional_call(module, state, (row,)), randomness=randomness)(inputs)
        spread[randomness] = (mapped - mapped[:1]).abs().max()
    assert spread["same"] < 1e-6 < spread["different"]
