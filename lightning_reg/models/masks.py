"""Dropout masks of a model's own layers, as a function of the position in training."""

from torch import nn

from lightning_reg.core.streams import base_seed, random_stream
from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.nn.layers.concrete_dropout import ConcreteDropout
from lightning_reg.nn.layers.drop_connect import DropConnect
from lightning_reg.nn.layers.layer_drop import LayerDrop
from lightning_reg.nn.layers.stochastic import StochasticLayer
from lightning_reg.nn.layers.zoneout import Zoneout

__all__ = ["KeyedMasks"]


class KeyedMasks:
    """Gives stochastic layers their own random streams, restarted at every training step.

    The streams depend on the seed, the process, the epoch and the batch alone, so that an interrupted run goes on with
    the masks that it would have had, and a repeated step drops the same units. This holds for eager code on the CPU;
    compiled code and GPUs draw from torch's global stream, for which torch has fused kernels, as do torch's own layers:
    ``AlphaDropout``, and dropout inside attention and recurrent layers.

    Args:
        network: The network; layers with a stream from elsewhere are left alone.

    >>> import torch
    >>> from lightning_reg.nn import Dropout
    >>> layer = Dropout(0.5)
    >>> masks = KeyedMasks(layer)
    >>> masks.start(0, 1)
    >>> first = layer(torch.ones(8))
    >>> masks.start(0, 1)
    >>> torch.equal(layer(torch.ones(8)), first)
    True
    """

    def __init__(self, network: nn.Module) -> None:
        dropping = (StochasticLayer, DropConnect, ConcreteDropout, LayerDrop, Zoneout)
        layers = [layer for layer in network.modules() if isinstance(layer, dropping)]
        # A layer inserted by a technique has a stream that serves everywhere; ours may be left from a fit that failed.
        free = [layer for layer in layers if layer.stream is None or layer.stream.on_cpu_only]
        self._streams = [(layer, NoiseStream(on_cpu_only=True)) for layer in free]

    def start(self, *key: int) -> None:
        """Starts a training step.

        Args:
            key: Rank of the process, epoch and batch.
        """
        if not self._streams:
            return
        seeds = random_stream(base_seed(None), *key, "dropout of the model")
        for layer, stream in self._streams:
            stream.start(seeds.getrandbits(62))
            layer.stream = stream

    def end(self) -> None:
        """Ends a training step: layers draw from torch's global stream again."""
        for layer, _ in self._streams:
            layer.stream = None
