"""Layers, blocks and the factories that make normalization, activation and dropout pluggable by name."""

from lightning_reg.nn.blocks import convolutional_network, dense_network
from lightning_reg.nn.factories import ACTIVATIONS, DROPOUTS, NORMS, make_activation, make_dropout, make_norm
from lightning_reg.nn.normalization import ChannelsFirstLayerNorm, ChannelsFirstRMSNorm

__all__ = [
    "ACTIVATIONS",
    "DROPOUTS",
    "NORMS",
    "ChannelsFirstLayerNorm",
    "ChannelsFirstRMSNorm",
    "convolutional_network",
    "dense_network",
    "make_activation",
    "make_dropout",
    "make_norm",
]
