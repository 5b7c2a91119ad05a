"""Base class of layers that perturb activations in training."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from lightning_reg.functional.forward.noise import NoiseStream, draw
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError

__all__ = ["Lease", "StochasticLayer", "check_rank", "uniform_from"]


class Lease:
    """Lifetime of something inserted into a module, shared by every copy of the module.

    A deep copy shares it, so that nothing keeps dropping in a copy after the run has ended. A lease loaded from a
    pickle has ended.

    >>> lease = Lease()
    >>> lease.end()
    >>> lease.has_ended
    True
    """

    def __init__(self) -> None:
        self.has_ended = False

    def end(self) -> None:
        """Ends the lease."""
        self.has_ended = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Any:
        return _ended, ()


def _ended() -> Lease:
    lease = Lease()
    lease.end()
    return lease


class StochasticLayer(nn.Module, ABC):
    """Perturbs its inputs in training; in evaluation and at strength 0 they pass through.

    Random numbers come from torch's global stream, or from ``stream`` where it is set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stream: NoiseStream | None = None

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether the strength is 0."""

    @abstractmethod
    def perturb(self, inputs: Tensor) -> Tensor:
        """Returns the perturbed inputs.

        Args:
            inputs: Tensor of any rank that the layer takes.
        """

    def perturb_block(self, start: Tensor, end: Tensor) -> Tensor:
        """Returns the output of a residual block with its residual branch perturbed.

        Args:
            start: Input of the block.
            end: Output of the block, of the same shape.
        """
        return start + self.perturb(end - start)

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns a tensor of the inputs' shape, dtype and memory format.

        Args:
            inputs: Tensor of any rank that the layer takes.
        """
        return self.perturb(inputs) if self.training and not self.is_idle else inputs

    def draw(self, kind: str, like: Tensor, shape: Sequence[int], p: float | Tensor = 0.0) -> Tensor:
        """Returns random numbers, see :func:`lightning_reg.functional.forward.noise.draw`.

        Args:
            like: Tensor that the dtype and the device are taken from.
            p: Probability of a 1, for ``"bernoulli"`` and ``"bits"``.
        """
        return _drawn(self.stream, kind, like, shape, p)


def uniform_from(stream: NoiseStream | None, inputs: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns uniform float32 numbers on [0, 1), whatever the inputs' dtype, so that rates are exact.

    Args:
        stream: Source of random numbers; torch's global stream where None.
        inputs: Tensor that the device is taken from.
    """
    return _drawn(stream, "uniform", inputs.new_empty(0, dtype=torch.float32), shape, 0.0)


def _drawn(stream: NoiseStream | None, kind: str, like: Tensor, shape: Sequence[int], p: float | Tensor) -> Tensor:
    if stream is None or not stream.serves(like):
        return draw(kind, like, shape, float(p))
    return stream.draw(kind, like, shape, p)


def check_rank(layer: nn.Module, inputs: Tensor, wanted: str, *, least: int, most: int | None = None) -> None:
    """Raises if inputs have too few or too many dimensions.

    Args:
        least: Smallest number of dimensions.
        wanted: Description of the expected shape, for the message.
        most: Largest number of dimensions; unlimited where None.

    Raises:
        SettingError: If they have fewer or more dimensions.
    """
    if inputs.ndim < least or (most is not None and inputs.ndim > most):
        raise SettingError(
            f"inputs of {type(layer).__name__} must have the shape {wanted}, but have {tuple(inputs.shape)}"
        )
