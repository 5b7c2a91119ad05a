"""Summary statistics of tensors, which can be combined over their parts."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_reg.functional.measures.histograms import wide_dtype

__all__ = [
    "Summary",
    "combined",
    "summarized",
]

# Number of elements processed at a time on a CPU: block and buffer stay in the cache, so that memory is read once.
_BLOCK = 131_072


class Summary(NamedTuple):
    """Summary statistics of a tensor.

    Attributes:
        number: Number of elements of the tensor.
        mean: Mean of all elements.
        deviations: Sum of squared deviations from the mean.
        zeros: Number of elements that are exactly zero.
        smallest: Smallest element; NaN if there is a NaN.
        largest: Largest element; NaN if there is a NaN.
    """

    number: float
    mean: float
    deviations: float
    zeros: float
    smallest: float
    largest: float

    def statistics(self) -> dict[str, float]:
        """Returns mean, standard deviation (of the population), extremes, Euclidean norm and the share of zeros."""
        number = max(self.number, 1.0)
        return {
            "mean": self.mean,
            "std": (self.deviations / number) ** 0.5,
            "min": self.smallest,
            "max": self.largest,
            "norm": (self.deviations + self.number * self.mean**2) ** 0.5,
            "zeros": self.zeros / number,
        }


@torch.no_grad()
def summarized(tensor: Tensor) -> Tensor:
    r"""Returns the numbers of a :class:`Summary`, on the tensor's device.

    Deviations are computed from the mean of each block, and blocks are combined by

    .. math:: M = M_a + M_b + (\bar a - \bar b)^2 \frac{n_a n_b}{n_a + n_b}

    so that nothing cancels where the mean is large compared to the deviation, as for the weights of a normalization.

    Args:
        tensor: Floating-point tensor of any shape; statistics are computed in float32.

    Returns:
        (6,), float64.

    Reference:
        Tony F. Chan, Gene H. Golub, Randall J. LeVeque: Algorithms for Computing the Sample Variance, The American
        Statistician 37, 1983.

    >>> Summary(*summarized(torch.tensor([0.0, 2.0, 4.0])).tolist()).statistics()["mean"]
    2.0
    """
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return torch.zeros(len(Summary._fields), dtype=wide_dtype(flat.device), device=flat.device)
    on_cpu = flat.device.type == "cpu"
    blocks = torch.split(flat, _BLOCK) if on_cpu else [flat]
    buffer = torch.empty(min(_BLOCK, flat.numel()), dtype=torch.float32) if on_cpu else None
    parts = []
    for block in blocks:
        numbers = block.float()
        # Comparisons that write floats, and sums of floats, are several times as fast as counting bools.
        scratch = torch.empty_like(numbers) if buffer is None else buffer[: len(numbers)]
        zeros = torch.eq(numbers, 0, out=scratch).sum()
        mean = numbers.mean()
        # Pairwise summation, unlike torch.dot.
        deviations = torch.sub(numbers, mean, out=scratch).square_().sum()
        parts.append(torch.stack([mean, deviations, zeros, *torch.aminmax(numbers)]))
    counts = torch.tensor([len(block) for block in blocks], dtype=parts[0].dtype).to(flat.device, non_blocking=True)
    return combined(torch.cat([counts.unsqueeze(1), torch.stack(parts)], dim=1))


def combined(parts: Tensor) -> Tensor:
    """Returns the summary of a whole from the summaries of its parts.

    Args:
        parts: (K, 6), one row per part.

    Returns:
        (6,), float64.

    >>> combined(torch.stack([summarized(torch.tensor([0.0])), summarized(torch.tensor([2.0, 4.0]))]))
    tensor([3., 2., 8., 1., 0., 4.], dtype=torch.float64)
    """
    number, mean, deviations, zeros, smallest, largest = parts.to(wide_dtype(parts.device)).unbind(1)
    total = number.sum()
    middle = (number * mean).sum() / total.clamp(min=1)
    between = (number * (mean - middle).square()).sum()
    return torch.stack([total, middle, deviations.sum() + between, zeros.sum(), smallest.min(), largest.max()])
