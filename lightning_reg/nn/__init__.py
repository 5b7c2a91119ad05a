"""Layers, blocks and the factories that make normalization, activation and dropout pluggable by name."""

from lightning_reg.nn.blocks import convolutional_network, dense_network
from lightning_reg.nn.concrete_dropout import ConcreteDropout, concrete_penalty
from lightning_reg.nn.drop_block import DropBlock, DropBlock1d, DropBlock2d, DropBlock3d
from lightning_reg.nn.drop_connect import DropConnect, drop_connected
from lightning_reg.nn.dropout import (
    Dropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout,
    StochasticDepth,
    VariationalDropout,
    linear_rates,
)
from lightning_reg.nn.factories import (
    ACTIVATIONS,
    DROPOUTS,
    NORMS,
    WEIGHT_DROPOUTS,
    make_activation,
    make_dropout,
    make_norm,
)
from lightning_reg.nn.monte_carlo import MonteCarloPrediction, monte_carlo_predict
from lightning_reg.nn.normalization import (
    ChannelsFirstLayerNorm,
    ChannelsFirstRMSNorm,
    FilterResponseNorm,
    GhostBatchNorm,
    WeightStandardization,
)
from lightning_reg.nn.recurrent import WeightDropGRU, WeightDropLSTM, WeightDropRNN, recurrent_network
from lightning_reg.nn.tabular import TabularEmbedding
from lightning_reg.nn.transformer import Attention, FeedForward, TransformerBlock, transformer_network

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
    "MonteCarloPrediction",
    "SpatialDropout",
    "StochasticDepth",
    "TabularEmbedding",
    "TransformerBlock",
    "VariationalDropout",
    "WeightDropGRU",
    "WeightDropLSTM",
    "WeightDropRNN",
    "WeightStandardization",
    "concrete_penalty",
    "convolutional_network",
    "dense_network",
    "drop_connected",
    "linear_rates",
    "make_activation",
    "make_dropout",
    "make_norm",
    "monte_carlo_predict",
    "recurrent_network",
    "transformer_network",
]
