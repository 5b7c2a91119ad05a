"""Layers that drop something, beside what a user would pick instead, forward and backward.

``python -m benchmarks.layers`` times each group on maps of 64×64×32×32, alternating between its members in changing
order, so that drift of the machine cancels; medians with quartiles, and ratios to ours. Then it measures which share of
small maps the three implementations of DropBlock drop, against what they were asked for. ``--device cuda`` runs it on a
GPU, ``--quick`` in a few seconds. Peers that aren't installed are left out, and that is said.
"""

import argparse
import importlib
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_reg.nn import DropBlock2d, Dropout, GaussianDropout, SpatialDropout, StochasticDepth

Layer = Callable[[Tensor], Tensor]
P, BLOCK = 0.1, 7


def peer(module: str, name: str) -> Callable[..., Layer] | None:
    """A layer of another library, or None where that isn't installed."""
    try:
        made: Callable[..., Layer] = getattr(importlib.import_module(module), name)
    except ImportError:
        print(f"{module} isn't installed: {name} is left out")
        return None
    return made


def groups() -> dict[str, dict[str, Layer]]:
    """Layers that do the same, ours first."""
    vision, timm = peer("torchvision.ops", "DropBlock2d"), peer("timm.layers", "DropBlock2d")
    rows, paths = peer("torchvision.ops", "StochasticDepth"), peer("timm.layers", "DropPath")
    blocks: dict[str, Layer] = {"ours": DropBlock2d(P, block_size=BLOCK)}
    shared: dict[str, Layer] = {"ours": DropBlock2d(P, block_size=BLOCK, per_channel=False)}
    depth: dict[str, Layer] = {"ours": StochasticDepth(P)}
    if vision and rows:
        blocks["torchvision"] = vision(P, BLOCK)
        depth["torchvision"] = rows(P, "row")
    if timm and paths:
        blocks["timm, couple_channels=False"] = timm(P, BLOCK, couple_channels=False)
        shared["timm"] = timm(P, BLOCK)
        depth["timm's DropPath"] = paths(P)
    return {
        "DropBlock, blocks of each channel's own": blocks,
        "DropBlock, the same blocks in all channels": shared,
        "stochastic depth, by sample": depth,
        "dropout": {"ours": Dropout(P), "torch": nn.Dropout(P)},
        "dropout of channels": {"ours": SpatialDropout(P), "torch": nn.Dropout2d(P)},
        "Gaussian dropout": {"ours": GaussianDropout(P), "by hand": by_hand},
    }


def by_hand(inputs: Tensor) -> Tensor:
    """Gaussian dropout as a user would write it."""
    deviation: float = (P / (1 - P)) ** 0.5
    return inputs * (1 + deviation * torch.randn_like(inputs))


def time_group(layers: dict[str, Layer], inputs: Tensor, gradient: Tensor, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each pass of each member."""
    passes: dict[str, list[float]] = {name: [] for name in layers}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(layers), len(layers)):
            inputs.grad = None
            _wait(inputs)
            start = time.perf_counter()
            torch.autograd.backward(layers[name](inputs), gradient)
            _wait(inputs)
            if number:  # the first is warm-up
                passes[name].append(1e3 * (time.perf_counter() - start))
    return passes


def _wait(inputs: Tensor) -> None:
    if inputs.is_cuda:
        torch.cuda.synchronize()


def print_times(device: str, rounds: int) -> None:
    """One table a group."""
    inputs = torch.randn(64, 64, 32, 32, device=device, requires_grad=True)
    gradient = torch.randn_like(inputs)
    for title, layers in groups().items():
        passes = time_group(layers, inputs, gradient, rounds)
        print(f"\n{title}")
        for name, times in passes.items():
            low, median, high = statistics.quantiles(times, n=4)
            ratio = statistics.median(a / b for a, b in zip(passes["ours"], times, strict=True))
            beside = "" if name == "ours" else f"  ours takes {ratio:.2f} of it"
            print(f"  {name:<30} {median:8.2f} ms ({low:.2f} to {high:.2f}){beside}")


def print_shares(count: int) -> None:
    """Which share of small maps is dropped."""
    print("\nshare that is dropped, block 7 (standard error at most 0.005)")
    for size in (14, 7):
        for p in (0.1, 0.3):
            asked: list[tuple[str, Layer]] = [("ours", DropBlock2d(p, block_size=BLOCK))]
            for name, module in (("torchvision", "torchvision.ops"), ("timm", "timm.layers")):
                make = peer(module, "DropBlock2d")
                asked += [(name, make(p, BLOCK))] if make else []
            ones = torch.ones(count, 1, size, size)
            found = ", ".join(f"{name} {(layer(ones) == 0).float().mean():.3f}" for name, layer in asked)
            print(f"  {size}×{size}, asked for {p}: {found}")


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print_times(arguments.device, 5 if arguments.quick else 30)
    print_shares(2_000 if arguments.quick else 20_000)


if __name__ == "__main__":
    main()
