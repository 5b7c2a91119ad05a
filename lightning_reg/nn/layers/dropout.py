"""The dropout family: layers that perturb activations in training and pass them through in evaluation."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.forward.dropout import dropout, gaussian_dropout, keep_and_rescale, mask_shape
from lightning_reg.nn.layers.stochastic import StochasticLayer, check_rank
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, check_choice, check_count, check_range

__all__ = [
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "RatedLayer",
    "SpatialDropout",
    "StochasticDepth",
    "VariationalDropout",
    "linear_rates",
]


class RatedLayer(StochasticLayer):
    """A stochastic layer whose strength is a probability.

    Args:
        p: Probability that something is dropped, in [0, 1]; at 1 the output is 0.
    """

    can_drop_all: ClassVar[bool] = True

    def __init__(self, p: float) -> None:
        super().__init__()
        check_range("p", p, low=0, high=1, high_open=not self.can_drop_all)
        self.p = p

    @property
    @override
    def is_idle(self) -> bool:
        return self.p == 0

    @override
    def extra_repr(self) -> str:
        return f"p={self.p:.4g}"

    def _drop(self, inputs: Tensor, shared_dims: Sequence[int]) -> Tensor:
        """Drops with one decision along the shared dimensions."""
        keep = self.draw("bernoulli", inputs, mask_shape(inputs.shape, shared_dims), 1 - self.p)
        return keep_and_rescale(inputs, keep, self.p)


class Dropout(RatedLayer):
    """Drops every unit by itself, as ``torch.nn.Dropout`` does, in a third of the time on the CPU.

    Inputs have any shape. Random numbers come from torch's global stream, or from ``stream`` where it is set. Few
    units, compiled code and GPUs use torch's own dropout, which is as fast there.

    Args:
        p: Probability that a unit is dropped, in [0, 1].

    Raises:
        SettingError: If ``p`` is out of range.

    Reference:
        Nitish Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014.

    >>> Dropout(0.2).eval()(torch.ones(2))
    tensor([1., 1.])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        # No calls in between: with few units they take most of the time.
        return dropout(inputs, self.p, self.stream) if self.training and self.p != 0 else inputs

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        return dropout(inputs, self.p, self.stream)


class SpatialDropout(RatedLayer):
    """Drops whole channels of feature maps (N, C, ...), whose positions are too alike to be dropped by themselves.

    Args:
        p: Probability that a channel is dropped, in [0, 1].

    Raises:
        SettingError: If ``p`` is out of range, or the inputs have fewer than two dimensions.

    Reference:
        Jonathan Tompson et al.: Efficient Object Localization Using Convolutional Networks, CVPR 2015,
        arXiv:1411.4280.

    >>> SpatialDropout(0.5)(torch.ones(2, 3, 4, 4)).flatten(2).std(2).any()
    tensor(False)
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        check_rank(self, inputs, "(N, C, ...)", least=2)
        return self._drop(inputs, range(2, inputs.ndim))


class VariationalDropout(RatedLayer):
    """Drops the same features at every time step of a sequence, so that a recurrent layer can't average it away.

    Args:
        p: Probability that a feature is dropped from a sequence, in [0, 1].
        time_dim: Dimension of time; 1 for (N, T, F), 0 for (T, N, F).

    Raises:
        SettingError: If ``p`` is out of range, or the inputs have fewer than three dimensions.

    Reference:
        Yarin Gal, Zoubin Ghahramani: A Theoretically Grounded Application of Dropout in Recurrent Neural Networks,
        NeurIPS 2016, arXiv:1512.05287.

    >>> VariationalDropout(0.5)(torch.ones(2, 5, 3)).std(1).any()
    tensor(False)
    """

    def __init__(self, p: float = 0.5, *, time_dim: int = 1) -> None:
        super().__init__(p)
        if isinstance(time_dim, bool) or not isinstance(time_dim, int):
            raise SettingError(f"time_dim must be a whole number, but is {time_dim!r}")
        self.time_dim = time_dim

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        check_rank(self, inputs, "(N, T, F) or another with time in dimension time_dim", least=3)
        if not -inputs.ndim <= self.time_dim < inputs.ndim:
            raise SettingError(f"time_dim must be a dimension of inputs {tuple(inputs.shape)}, but is {self.time_dim}")
        return self._drop(inputs, (self.time_dim,))

    @override
    def extra_repr(self) -> str:
        return f"p={self.p:.4g}, time_dim={self.time_dim}"


class StochasticDepth(RatedLayer):
    """Drops a residual branch, for single samples or for the whole batch; stands at the end of the branch.

    With the branch at 0, the block passes its input through. Inputs are (N, ...).

    Args:
        p: Probability that the branch is dropped, in [0, 1]; usually rising with depth, see
            :func:`lightning_reg.nn.linear_rates`.
        mode: ``"row"`` drops each sample independently, ``"batch"`` all or none.

    Raises:
        SettingError: If a setting is out of range.

    Reference:
        Gao Huang et al.: Deep Networks with Stochastic Depth, ECCV 2016, arXiv:1603.09382. Survivors are rescaled in
        training rather than all branches at test time.

    >>> StochasticDepth(0.5)(torch.ones(4, 3)).std(1).any()
    tensor(False)
    """

    def __init__(self, p: float = 0.5, *, mode: Literal["row", "batch"] = "row") -> None:
        super().__init__(p)
        check_choice("mode", mode, ("row", "batch"))
        self.mode = mode

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        check_rank(self, inputs, "(N, ...)", least=1)
        return self._drop(inputs, range(1 if self.mode == "row" else 0, inputs.ndim))

    @override
    def extra_repr(self) -> str:
        return f"p={self.p:.4g}, mode={self.mode!r}"


class GaussianDropout(RatedLayer):
    """Multiplies every unit by Gaussian noise of mean 1 and of the variance that dropout's would have.

    Inputs have any shape.

    Args:
        p: Probability of the equivalent dropout, in [0, 1); the noise has the variance p / (1 − p).

    Raises:
        SettingError: If ``p`` is out of range.

    Reference:
        Nitish Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014,
        section 10.

    >>> GaussianDropout(0.2).eval()(torch.ones(2))
    tensor([1., 1.])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)

    can_drop_all = False  # the variance would be infinite

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        return gaussian_dropout(inputs, self.draw("normal", inputs, inputs.shape), self.p)


class GaussianNoise(StochasticLayer):
    """Adds Gaussian noise of mean 0 to every unit.

    Inputs have any shape.

    Args:
        std: Standard deviation of the noise, at least 0, in units of the inputs.

    Raises:
        SettingError: If ``std`` is out of range.

    Reference:
        Christopher M. Bishop: Training with Noise is Equivalent to Tikhonov Regularization, Neural Computation 1995.

    >>> GaussianNoise(0.1).eval()(torch.zeros(2))
    tensor([0., 0.])
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        check_range("std", std, low=0)
        self.std = std

    @property
    @override
    def is_idle(self) -> bool:
        return self.std == 0

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        return torch.add(inputs, self.draw("normal", inputs, inputs.shape), alpha=self.std)

    @override
    def extra_repr(self) -> str:
        return f"std={self.std}"


def linear_rates(p: float, count: int) -> list[float]:
    """Returns rates that rise linearly with depth to ``p``: the l-th of L is p·l/L.

    Args:
        p: Last rate, in [0, 1].
        count: Number L of rates.

    Reference:
        Gao Huang et al.: Deep Networks with Stochastic Depth, ECCV 2016, arXiv:1603.09382.

    >>> linear_rates(0.4, 4)
    [0.1, 0.2, 0.3, 0.4]
    """
    check_range("p", p, low=0, high=1)
    check_count("count", count, low=0)
    return [round(p * (index + 1) / count, 12) for index in range(count)]
