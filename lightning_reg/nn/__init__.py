"""Layers, blocks, and factories that make normalization, activation and dropout by name."""

from lightning_reg.nn.factories import (
    ACTIVATIONS,
    DROPOUTS,
    NORMS,
    WEIGHT_DROPOUTS,
    make_activation,
    make_dropout,
    make_norm,
)
from lightning_reg.nn.layers.concrete_dropout import ConcreteDropout, concrete_penalty
from lightning_reg.nn.layers.drop_block import DropBlock, DropBlock1d, DropBlock2d, DropBlock3d
from lightning_reg.nn.layers.drop_connect import DropConnect, drop_connected, mixed_out
from lightning_reg.nn.layers.dropout import (
    Dropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout,
    StochasticDepth,
    VariationalDropout,
    linear_rates,
)
from lightning_reg.nn.layers.layer_drop import LayerDrop
from lightning_reg.nn.layers.layer_scale import LayerScale
from lightning_reg.nn.layers.normalization import (
    ChannelsFirstLayerNorm,
    ChannelsFirstRMSNorm,
    FilterResponseNorm,
    GhostBatchNorm,
    StandardizedWeight,
)
from lightning_reg.nn.layers.shake_drop import ShakeDrop
from lightning_reg.nn.layers.token_dropout import TokenDropout
from lightning_reg.nn.layers.weight_drop import WeightDropGRU, WeightDropLSTM, WeightDropRNN
from lightning_reg.nn.layers.zoneout import ZoneoutGRU, ZoneoutLSTM, ZoneoutRNN
from lightning_reg.nn.monte_carlo import MonteCarloPrediction, monte_carlo_predict
from lightning_reg.nn.networks.blocks import ResidualBlock, convolutional_network, dense_network
from lightning_reg.nn.networks.recurrent import recurrent_network
from lightning_reg.nn.networks.tabular import TabularEmbedding
from lightning_reg.nn.networks.transformer import Attention, FeedForward, TransformerBlock, transformer_network

__all__ = [
    "ACTIVATIONS",
    "DROPOUTS",
    "NORMS",
    "WEIGHT_DROPOUTS",
    "Attention",
    "ChannelsFirstLayerNorm",
    "ChannelsFirstRMSNorm",
    "ConcreteDropout",
    "DropBlock",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnect",
    "Dropout",
    "FeedForward",
    "FilterResponseNorm",
    "GaussianDropout",
    "GaussianNoise",
    "GhostBatchNorm",
    "LayerDrop",
    "LayerScale",
    "MonteCarloPrediction",
    "ResidualBlock",
    "ShakeDrop",
    "SpatialDropout",
    "StandardizedWeight",
    "StochasticDepth",
    "TabularEmbedding",
    "TokenDropout",
    "TransformerBlock",
    "VariationalDropout",
    "WeightDropGRU",
    "WeightDropLSTM",
    "WeightDropRNN",
    "ZoneoutGRU",
    "ZoneoutLSTM",
    "ZoneoutRNN",
    "concrete_penalty",
    "convolutional_network",
    "dense_network",
    "drop_connected",
    "linear_rates",
    "make_activation",
    "make_dropout",
    "make_norm",
    "mixed_out",
    "monte_carlo_predict",
    "recurrent_network",
    "transformer_network",
]
