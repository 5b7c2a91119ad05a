"""Statistics of what a network's layers return, without a Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_reg.core.selection import as_patterns
from lightning_reg.monitors.activations import ActivationWatch, Sums, select_watched
from lightning_reg.settings import SettingError, check_range
from lightning_reg.text import table

__all__ = ["ActivationTable", "activation_statistics"]


@dataclass(frozen=True)
class ActivationTable(Mapping[str, dict[str, float]]):
    """Statistics by module, in the order of the model; prints as a table.

    Attributes:
        rows: Statistics by the module's name: ``mean``, ``std``, ``zeros``, ``near_zero``, ``dead``, ``saturated``.
    """

    rows: dict[str, dict[str, float]]

    def __getitem__(self, name: str) -> dict[str, float]:
        return self.rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        columns = ("mean", "std", "zeros", "near_zero", "dead", "saturated")
        rows = [[name, *(_cell(column, row.get(column)) for column in columns)] for name, row in self.rows.items()]
        return "\n".join(table([["module", *columns], *rows], right=range(1, 7)))


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if column in ("mean", "std") else f"{value:.1%}"


def activation_statistics(
    model: nn.Module,
    *inputs: Any,
    include: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    types: str | Sequence[str | type] = (),
    near_zero: float = 1e-3,
    saturation: float = 0.01,
    unit_dim: int | None = None,
) -> ActivationTable:
    """Runs a model once and returns statistics of its layers' outputs: mean, deviation, zeros, dead units, saturation.

    They show whether an initialization keeps the standard deviation from growing or vanishing from layer to layer. The
    model runs in its current mode and without gradients; its buffers and torch's random state are restored.

    Args:
        model: Module whose submodules are watched.
        inputs: Arguments of the model's one call; the larger the batch, the more certain it is which units are dead.
        include: Globs over names of modules; ``"*"`` alone means all that have no children.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names; all where empty.
        near_zero: Absolute value below which an activation is near zero; at least 1e-15.
        saturation: Distance from a bound within which an activation is saturated, as a share of its range, in (0, 0.5).
        unit_dim: Dimension of the units; inferred as by ``ActivationStats`` where None.

    Raises:
        SettingError: If a setting is out of its range, a pattern matches nothing, or no chosen module runs.

    >>> network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> _ = nn.init.eye_(network[0].weight)
    >>> print(activation_statistics(network, torch.tensor([[1.0, -1.0], [3.0, -3.0]])))
    module       mean        std      zeros  near_zero       dead  saturated
    0               0      2.236       0.0%       0.0%       0.0%          -
    1               1      1.225      50.0%      50.0%      50.0%          -
    """
    check_range("near_zero", near_zero, low=1e-15)
    check_range("saturation", saturation, low=0, high=0.5, low_open=True, high_open=True)
    kinds = (types,) if isinstance(types, str) else tuple(types)
    chosen = select_watched(model, as_patterns("include", include), as_patterns("exclude", exclude), kinds)
    watch = ActivationWatch(chosen, near_zero=near_zero, saturation=saturation, unit_dim=unit_dim)
    handles = watch.attach()
    try:
        with torch.no_grad(), _left_as_it_was(model, inputs):
            watch.is_measuring = True
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    seen = watch.take()
    if not seen:
        raise SettingError("include must name modules that run and return floating-point tensors, but none did")
    rows = {}
    for name, record in seen.items():
        sums = Sums(*record.sums.tolist())
        rows[name] = sums.statistics(bounded=watch.is_bounded(name)) | {"dead": record.silent.double().mean().item()}
    return ActivationTable(rows)


@contextmanager
def _left_as_it_was(model: nn.Module, inputs: Sequence[Any]) -> Iterator[None]:
    """Restores buffers and random state, which normalization layers and dropout change."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors = [*model.parameters(), *(entry for entry in inputs if isinstance(entry, Tensor))]
    devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
