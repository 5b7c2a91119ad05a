"""Cost by the number of weights and of tensors, relative to the memory bandwidth.

``python -m benchmarks scaling`` runs the passes over weights and gradients that techniques make once per step. Each
must read and write a minimum number of bytes; the time of a plain copy of as many bytes is the limit that it is
compared with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.tables import Options, Table
from benchmarks.timing import alternate, copy_bandwidth, quartiles
from lightning_reg.functional.gradient.clipping import clip_by_value_, scale_, shrinking_factor
from lightning_reg.functional.gradient.penalties import add_elastic_net_gradient_
from lightning_reg.functional.measures.histograms import linear_histogram
from lightning_reg.functional.measures.statistics import summarized
from lightning_reg.functional.norms import norms_of, total_norm
from lightning_reg.functional.weights.averaging import ema_update_
from lightning_reg.functional.weights.proximal import soft_threshold_

__all__ = ["PASSES", "Pass", "Weights"]


class Weights:
    """Weights and gradients to work on.

    Args:
        numel: Total number of weights.
        tensors: Number of tensors that they are split into.
        device: Device of torch.
    """

    def __init__(self, numel: int, tensors: int, device: str) -> None:
        size = max(numel // tensors, 1)
        self.weights = [nn.Parameter(torch.randn(size, device=device)) for _ in range(tensors)]
        self.gradients = [torch.randn(size, device=device) for _ in range(tensors)]
        self.averages = [weight.detach().clone() for weight in self.weights]
        self.values = [weight.detach() for weight in self.weights]  # the weights themselves, without a graph
        self.numel = size * tensors


@dataclass(frozen=True)
class Pass:
    """An operation that techniques perform once per step.

    Attributes:
        run: Function that performs the operation.
        touched: Least number of reads and writes per element.
    """

    run: Callable[[Weights], object]
    touched: int


def _clip(weights: Weights) -> None:
    norm = total_norm(norms_of(weights.gradients))
    scale_(weights.gradients, shrinking_factor(norm, 0.99999 * norm))  # a factor of 1 would be skipped


def _distribution(weights: Weights) -> list[torch.Tensor]:
    found = []
    for value in weights.values:
        summary = summarized(value)
        found += [summary, linear_histogram(value, summary[-2], summary[-1], 64)]
    return found


PASSES: dict[str, Pass] = {
    "elastic net, gradient": Pass(
        lambda weights: add_elastic_net_gradient_(weights.gradients, weights.values, l1=1e-9, l2=1e-9), 3
    ),
    "L1, proximal": Pass(lambda weights: soft_threshold_(weights.values, 1e-9), 2),
    "clipping by norm": Pass(_clip, 3),
    "moving average (EMA)": Pass(lambda weights: ema_update_(weights.averages, weights.values, 0.999), 3),
    "statistics and histogram (WeightDistribution)": Pass(_distribution, 1),
    "clipping by value": Pass(lambda weights: clip_by_value_(weights.gradients, 1e9), 2),
}


def tables(options: Options) -> Iterator[Table]:
    """Yields a table by number of weights and one by number of tensors."""
    bandwidth = copy_bandwidth(options.device, numel=1_000 if options.smallest else 32_000_000)
    largest = 3 if options.smallest else 7 if options.quick else 8
    by_numel = [(f"10^{power}", 10**power, min(50, 10**power)) for power in range(min(5, largest), largest + 1)]
    by_tensors = [(str(tensors), 10**6, tensors) for tensors in ([10] if options.smallest else [10, 100, 1_000, 3_000])]
    yield _table("weights, over 50 tensors", by_numel, bandwidth, options)
    yield _table("tensors, of 10^6 weights in all", by_tensors, bandwidth, options)


def _table(what: str, sizes: Sequence[tuple[str, int, int]], bandwidth: float, options: Options) -> Table:
    table = Table(
        f"Cost by the number of {what}",
        ["pass", *(column for name, _, _ in sizes for column in (f"{name}: ms", "of the limit"))],
        note=f"The limit is a copy, which reads and writes {bandwidth / 1e9:.1f} GB/s here; below some 10^6 numbers "
        "caches are faster than that.",
    )
    cells: dict[str, list[float | str]] = {name: [] for name in PASSES}
    for _, numel, tensors in sizes:
        weights = Weights(numel, tensors, options.device)
        members = {name: partial(measured.run, weights) for name, measured in PASSES.items()}
        seconds = alternate(members, rounds=options.rounds(15, 5), device=options.device)
        for name, times in seconds.items():
            median = quartiles(times)[1]
            limit = 4 * PASSES[name].touched * weights.numel / bandwidth
            cells[name] += [f"{1e3 * median:.3f}", f"{limit / median:.0%}"]
        del weights
    for name, row in cells.items():
        table.add(name, *row)
    return table
