"""Reduction of activation sums over processes, and their transfer to the CPU in one copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_reg.functional.measures.histograms import FINE_BINS, wide_dtype
from lightning_reg.monitors.activations import Seen, Sums

__all__ = ["Gathered", "gather"]

_HEAD = len(Sums._fields) + 2  # the sums; in how many processes it ran, and in how many the window is full


@dataclass
class Gathered:
    """Activations of one module in all processes, on the CPU.

    Attributes:
        dead: Share of the units that are dead in all processes; None where the window isn't full.
        histogram: Histogram, (FINE_BINS,); None where histograms aren't kept.
    """

    sums: Sums
    dead: float | None
    histogram: Tensor | None


def gather(
    trainer: Trainer,
    names: Sequence[str],
    seen: Mapping[str, Seen],
    dead: Mapping[str, Tensor],
    *,
    histograms: bool,
) -> dict[str, Gathered]:
    """Adds up activation sums over processes.

    Args:
        names: Names of all watched modules, the same in all processes.
        seen: Activations in this process, by name of the modules that ran here.
        dead: Which units are dead in this process, (C,), by name of the modules whose window is full.
        histograms: Whether histograms are kept.

    Returns:
        Activations by name of the modules that ran in any process.
    """
    device = trainer.strategy.root_device
    units = torch.tensor([len(seen[name].silent) if name in seen else 0 for name in names], device=device)
    if trainer.world_size > 1:
        units = trainer.strategy.reduce(units, reduce_op="max")  # so that all have the same length
    widths = {name: count for name, count in zip(names, units.tolist(), strict=True) if count}
    if not widths:
        return {}
    fine = FINE_BINS if histograms else 0
    parts = [_packed(seen.get(name), dead.get(name), fine, width, device) for name, width in widths.items()]
    packed = torch.cat(parts)
    if trainer.world_size > 1:
        packed = trainer.strategy.reduce(packed, reduce_op="sum")
    split = torch.split(packed.cpu().double(), [_HEAD + fine + width for width in widths.values()])
    return {name: _unpacked(part, fine) for name, part in zip(widths, split, strict=True)}


def _packed(seen: Seen | None, dead: Tensor | None, fine: int, width: int, device: torch.device) -> Tensor:
    """Returns sums, flags, histogram, and for each unit whether it is alive, in a row."""
    wide = wide_dtype(device)
    if seen is None:
        return torch.zeros(_HEAD + fine + width, dtype=wide, device=device)
    alive = torch.ones(width, dtype=wide, device=device)
    if dead is not None:
        alive[: len(dead)] = (~dead).to(device, wide)
    flags = torch.full((2,), 1.0, dtype=wide, device=device)
    flags[1] = 0.0 if dead is None else 1.0
    histogram = [] if seen.histogram is None or not fine else [seen.histogram.to(device, wide)]
    return torch.cat([seen.sums.to(device, wide), flags, *histogram, alive])


def _unpacked(part: Tensor, fine: int) -> Gathered:
    sums = Sums(*part[: _HEAD - 2].tolist())
    ran, full = part[_HEAD - 2 : _HEAD].tolist()
    alive = part[_HEAD + fine :]
    dead = (alive == 0).double().mean().item() if full and full == ran else None
    return Gathered(sums, dead, part[_HEAD : _HEAD + fine] if fine else None)
