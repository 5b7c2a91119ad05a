"""ShakeDrop: residual branches that are disturbed differently forward and backward."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.forward.branches import shake_drop, shake_drop_expectation
from lightning_reg.nn.layers.dropout import RatedLayer
from lightning_reg.nn.layers.stochastic import check_rank, uniform_from
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, check_range

__all__ = ["ShakeDrop"]


class ShakeDrop(RatedLayer):
    """Multiplies a residual branch by noise of its own forward and backward; stands at the end of the branch.

    For each sample independently, with probability ``p``, the branch is multiplied by α in the forward pass and its
    gradient by β in the backward pass. In evaluation the branch is multiplied by the expectation, 1 − p + p·E[α]:
    unlike most layers of its kind, this one changes evaluation, too. Inputs are (N, ...).

    When to use: in residual networks with a normalization in each branch, with rates that rise with depth, see
    :func:`lightning_reg.nn.linear_rates`. When not: in networks without one, where the changed scale of gradients can
    cause divergence; use :class:`lightning_reg.nn.StochasticDepth` there.

    Args:
        p: Probability that a branch is disturbed, in [0, 1].
        alpha: Smallest and largest α, in [-1, 1].
        beta: Smallest and largest β, in [0, 1].

    Raises:
        SettingError: If an argument is out of range.

    Reference:
        Yoshihiro Yamada, Masakazu Iwamura, Takuya Akiba, Koichi Kise: ShakeDrop Regularization for Deep Residual
        Learning, IEEE Access 2019, arXiv:1802.02375. Whether a branch is disturbed is drawn for each sample, as α and β
        are, and ``p`` is the probability that it is, the paper's 1 − p.

    >>> import torch
    >>> ShakeDrop(0.5).eval()(torch.ones(2))
    tensor([0.5000, 0.5000])
    """

    def __init__(
        self, p: float = 0.5, *, alpha: Sequence[float] = (-1.0, 1.0), beta: Sequence[float] = (0.0, 1.0)
    ) -> None:
        super().__init__(p)
        self.alpha = _interval("alpha", alpha, low=-1)
        self.beta = _interval("beta", beta, low=0)

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        if self.is_idle:
            return inputs
        return self.perturb(inputs) if self.training else inputs * shake_drop_expectation(self.p, self.alpha)

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        check_rank(self, inputs, "(N, ...)", least=1)
        uniform = uniform_from(self.stream, inputs, (3, len(inputs), *[1] * (inputs.ndim - 1)))
        return shake_drop(inputs, uniform, self.p, self.alpha, self.beta)

    @override
    def extra_repr(self) -> str:
        return f"p={self.p:.4g}, alpha={self.alpha}, beta={self.beta}"


def _interval(name: str, given: Sequence[float], *, low: float) -> tuple[float, float]:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        raise SettingError(f"{name} must be the lowest and the highest number, but is {given!r}")
    for bound in given:
        check_range(f"each of {name}", bound, low=low, high=1)
    if given[0] > given[1]:
        raise SettingError(f"{name} must be the lowest number and then the highest, but is {tuple(given)}")
    return float(given[0]), float(given[1])
