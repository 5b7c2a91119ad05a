"""Gradient centralization."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["centralize_"]


@torch.no_grad()
def centralize_(gradients: Sequence[Tensor]) -> None:
    r"""Subtracts the mean from the gradient of every unit, in place.

    .. math:: g_u \leftarrow g_u - \frac{1}{n_u} \sum_i g_{u,i}

    Args:
        gradients: Tensors (units, ...) of two or more dimensions.

    Reference:
        Hongwei Yong, Jianqiang Huang, Xiansheng Hua, Lei Zhang: Gradient Centralization: A New Optimization Technique
        for Deep Neural Networks, ECCV 2020, arXiv:2004.01461.

    >>> gradient = torch.tensor([[1.0, 3.0], [0.0, 4.0]])
    >>> centralize_([gradient])
    >>> gradient
    tensor([[-1.,  1.],
            [-2.,  2.]])
    """
    for gradient in gradients:
        gradient.sub_(gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True))
