"""Techniques on many small tensors, where call overhead dominates, compared with plain foreach calls.

``python -m benchmarks small`` trains 3,000 matrices of 15×20, and times what each technique adds to a step, and what
the same arithmetic adds as a minimal callback of torch's foreach operations.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from benchmarks.overhead import Peers, measure
from benchmarks.tables import Options, Table
from benchmarks.timing import quartiles
from benchmarks.workloads import L1, L2, Workload
from lightning_reg.callbacks import (
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientClipping,
    L1Penalty,
    L2Penalty,
    NonNegative,
)

ROWS, COLUMNS = 15, 20
DECAY, LONGEST, LARGEST = 0.999, 1e-3, 1e-5


class Mean(nn.Module):
    """Multiplies inputs by the mean of many matrices."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.matrices = nn.ParameterList(0.1 * torch.randn(ROWS, COLUMNS) for _ in range(count))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ torch.stack(list(self.matrices)).mean(0)


class OnGradients(Callback):
    """Changes all gradients before an optimizer step.

    Args:
        change: Function of weights and gradients that changes the gradients in place.
    """

    def __init__(self, change: Callable[[list[Tensor], list[Tensor]], object]) -> None:
        self.change = change

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        weights: list[Tensor] = list(pl_module.parameters())
        self.change(weights, [weight.grad for weight in weights if weight.grad is not None])


class OnWeights(Callback):
    """Applies a function to all weights after a step.

    Args:
        change: Function of the weights and of copies of them that were made after the first step.
    """

    def __init__(self, change: Callable[[list[Tensor], list[Tensor]], object]) -> None:
        self.change = change
        self.copies: list[Tensor] = []

    @override
    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        weights = [weight.detach() for weight in pl_module.parameters()]
        self.copies = self.copies or [weight.clone() for weight in weights]
        self.change(weights, self.copies)


def _elastic_net(weights: list[Tensor], gradients: list[Tensor]) -> None:
    torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=L1)
    torch._foreach_add_(gradients, weights, alpha=L2)


def _clip(_: list[Tensor], gradients: list[Tensor]) -> None:
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (LONGEST / norm).clamp(max=1))


def _clip_values(_: list[Tensor], gradients: list[Tensor]) -> None:
    torch._foreach_clamp_min_(gradients, -LARGEST)
    torch._foreach_clamp_max_(gradients, LARGEST)


PAIRS: dict[str, tuple[Callable[[], Callback], Callable[[], Callback]]] = {
    "L1Penalty": (
        lambda: L1Penalty(weight=L1),
        lambda: OnGradients(lambda w, g: torch._foreach_add_(g, torch._foreach_sign(w), alpha=L1)),
    ),
    "L2Penalty": (
        lambda: L2Penalty(weight=L2),
        lambda: OnGradients(lambda w, g: torch._foreach_add_(g, w, alpha=L2)),
    ),
    "ElasticNetPenalty": (lambda: ElasticNetPenalty(l1=L1, l2=L2), lambda: OnGradients(_elastic_net)),
    "GradientClipping(norm)": (lambda: GradientClipping(max_norm=LONGEST), lambda: OnGradients(_clip)),
    "GradientClipping(value)": (
        lambda: GradientClipping(algorithm="value", max_value=LARGEST),
        lambda: OnGradients(_clip_values),
    ),
    "ExponentialMovingAverage": (
        lambda: ExponentialMovingAverage(decay=DECAY),
        lambda: OnWeights(lambda w, c: torch._foreach_lerp_(c, w, 1 - DECAY)),
    ),
    "NonNegative": (NonNegative, lambda: OnWeights(lambda w, _: torch._foreach_clamp_min_(w, 0))),
}


def _made(make: Callable[[], Callback]) -> list[Callback]:
    return [make()]


def tables(options: Options) -> Iterator[Table]:
    """Yields one table."""
    count = 30 if options.smallest else 3_000
    workload = Workload(Mean(count), (ROWS,), 8)
    techniques: Peers = {}
    for name, (ours, alone) in PAIRS.items():
        if options.only.lower() in name.lower():
            techniques |= {name: partial(_made, ours), f"  {name}": partial(_made, alone)}
    result = measure(workload, techniques, options, steps=options.rounds(8, 2), pairs=options.rounds(11, 2))
    bare = quartiles(result.bare)[1] * 1e3
    table = Table(
        f"What techniques add to a step of {count:,} tensors of {ROWS * COLUMNS} numbers",
        ["technique", "adds ms", "foreach calls alone add ms", "ratio"],
        note=f"A bare step takes {bare:.2f} ms.",
    )
    for name in PAIRS:
        if name in techniques:
            adds, needs = (bare * (quartiles(result.ratios[row])[1] - 1) for row in (name, f"  {name}"))
            table.add(name, f"{adds:.2f}", f"{needs:.2f}", adds / needs if needs > 0 else None)
    yield table
