"""What a model's own layers drop, as a function of where training stands."""

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
    """Gives layers that drop something random numbers of their own for one training step after the other.

    They depend on the seed, the process, the epoch and the batch alone, so that a run that was interrupted goes on with
    the masks that it would have had, and a step that is made again drops the same. So it is in eager code on the CPU;
    compiled code and GPUs draw from torch's global stream, for which torch has fused kernels, as do layers of torch's
    own: ``AlphaDropout``, and dropout inside of attention and of recurrent layers.

    Args:
        network: Whose layers have no random numbers of their own yet.

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
        # What a technique has put in has a stream that serves everywhere; ours may be left from a fit that failed.
        free = [layer for layer in layers if layer.stream is None or layer.stream.on_cpu_only]
        self._streams = [(layer, NoiseStream(on_cpu_only=True)) for layer in free]

    def start(self, *key: int) -> None:
        """Starts a training step.

        Args:
            key: Process, epoch and batch.
        """
        if not self._streams:
            return
        seeds = random_stream(base_seed(None), *key, "dropout of the model")
        for layer, stream in self._streams:
            stream.start(seeds.getrandbits(62))
            layer.stream = stream

    def end(self) -> None:
        """Ends it: from here on, layers draw from torch's global stream again."""
        for layer, _ in self._streams:
            layer.stream = None
