"""The random numbers of inserted layers, as the documentation says: from seed, rank, epoch and batch."""

import torch

from lightning_reg.core.streams import random_stream

SEED = 3


def splitmix(seed):
    """The first number of SplitMix64, as its paper has it, less the sign."""
    word = (seed + 0x9E3779B97F4A7C15) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        word = ((word ^ (word >> shift)) * factor) & (2**64 - 1)
    return word & (2**63 - 1)


def generator_of(name, model):
    """Of the first layer that a technique has put into a model."""
    seeds = random_stream(SEED, model.rank, model.epoch, model.batch, name, 0)
    return torch.Generator().manual_seed(splitmix(seeds.getrandbits(62)))


def kept(name, model, like, shape, p):
    """1 for what is kept."""
    return like.new_empty(shape).bernoulli_(1 - p, generator=generator_of(name, model))


def uniform(name, model, shape):
    """Numbers on [0, 1), in 32 bits whatever they are for."""
    return torch.empty(shape).uniform_(generator=generator_of(name, model))
