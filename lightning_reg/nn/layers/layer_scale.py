"""A learned scale of a residual branch."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.settings import check_count, check_range

__all__ = ["LayerScale"]


class LayerScale(nn.Module):
    r"""Multiplies every feature by a learned scale that begins small, at the end of a residual branch.

    .. math:: y = \operatorname{diag}(\gamma) \, x, \qquad \gamma_i = \epsilon \text{ initially}

    So a deep network starts near the identity, and each branch grows as needed. Inputs are (..., E); their dtype is
    kept.

    Args:
        num_features: Number of features E.
        init_value: Initial scale ε, above 0; 0.1 is usual for 12 blocks, 1e-4 or 1e-5 for 24 and more.

    Raises:
        SettingError: If an argument is out of range.

    Reference:
        Hugo Touvron, Matthieu Cord, Alexandre Sablayrolles, Gabriel Synnaeve, Hervé Jégou: Going deeper with Image
        Transformers, ICCV 2021, arXiv:2103.17239.

    >>> LayerScale(2, init_value=0.1)(torch.ones(1, 2)).tolist()
    [[0.10000000149011612, 0.10000000149011612]]
    """

    def __init__(self, num_features: int, *, init_value: float = 1e-4) -> None:
        super().__init__()
        check_count("num_features", num_features)
        check_range("init_value", init_value, low=0, low_open=True)
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.full((num_features,), float(init_value)))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the scaled features.

        Args:
            inputs: (..., E).
        """
        return inputs * self.gamma.to(inputs.dtype)

    @override
    def extra_repr(self) -> str:
        return f"{len(self.gamma)}, init_value={self.init_value}"
