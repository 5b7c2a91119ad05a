"""Dropout layers compared with the alternatives that a user would pick, forward and backward.

``python -m benchmarks layers`` times dropout by the number of units, then each group of layers on maps of 64×64×32×32.
Then it measures the share that three implementations of DropBlock drop from small maps, against the requested one.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.tables import Options, Table
from benchmarks.timing import alternate, median_ratio, peer, quartiles
from lightning_reg.nn import DropBlock2d, Dropout, GaussianDropout, SpatialDropout, StochasticDepth

Layer = Callable[[Tensor], Tensor]
P, BLOCK = 0.1, 7


def groups() -> dict[str, dict[str, Layer]]:
    """Returns groups of equivalent layers, ours first."""
    vision, timm = peer("torchvision.ops", "DropBlock2d"), peer("timm.layers", "DropBlock2d")
    rows, paths = peer("torchvision.ops", "StochasticDepth"), peer("timm.layers", "DropPath")
    blocks: dict[str, Layer] = {"DropBlock2d": DropBlock2d(P, block_size=BLOCK)}
    shared: dict[str, Layer] = {"DropBlock2d(per_channel=False)": DropBlock2d(P, block_size=BLOCK, per_channel=False)}
    depth: dict[str, Layer] = {"StochasticDepth": StochasticDepth(P)}
    if vision and rows:
        blocks["torchvision's DropBlock2d"] = vision(P, BLOCK)
        depth["torchvision's StochasticDepth"] = rows(P, "row")
    if timm and paths:
        blocks["timm's DropBlock2d(couple_channels=False)"] = timm(P, BLOCK, couple_channels=False)
        shared["timm's DropBlock2d, its default"] = timm(P, BLOCK)
        depth["timm's DropPath"] = paths(P)
    return {
        "DropBlock, blocks of each channel's own": blocks,
        "DropBlock, the same blocks in all channels": shared,
        "stochastic depth, by sample": depth,
        "dropout": {"Dropout": Dropout(P), "torch's Dropout": nn.Dropout(P)},
        "dropout of channels": {"SpatialDropout": SpatialDropout(P), "torch's Dropout2d": nn.Dropout2d(P)},
        "Gaussian dropout": {"GaussianDropout": GaussianDropout(P), "written by hand": by_hand},
    }


def by_hand(inputs: Tensor) -> Tensor:
    """Gaussian dropout as a user would write it."""
    deviation: float = (P / (1 - P)) ** 0.5
    return inputs * (1 + deviation * torch.randn_like(inputs))


def tables(options: Options) -> Iterator[Table]:
    """Yields the times, then the dropped shares."""
    yield _by_units(options)
    yield _times(options)
    yield _shares(100 if options.smallest else 2_000 if options.quick else 20_000)


def _by_units(options: Options) -> Table:
    table = Table(
        "Dropout by the number of units, forward and backward",
        ["units", "Dropout: ms", "torch's: ms", "ours / torch's", "quartiles"],
        note=f"On {torch.get_num_threads()} threads.",
    )
    for units in (10, 1_000) if options.smallest else (10, 1_000, 10_000, 30_000, 100_000, 10**6, 4 * 10**6):
        inputs = torch.randn(units, device=options.device, requires_grad=True)
        gradient = torch.randn_like(inputs)
        calls = max(1, min(20, 10**5 // units))  # with few units, a single call is too short to be timed
        layers: dict[str, Layer] = {"ours": Dropout(P), "torch's": nn.Dropout(P)}
        members = {name: _repeated(_pass(layer, inputs, gradient), calls) for name, layer in layers.items()}
        seconds = alternate(members, rounds=options.rounds(60, 9), device=options.device)
        ratios = [ours / theirs for ours, theirs in zip(*seconds.values(), strict=True)]
        low, median, high = quartiles(ratios)
        medians = [1e3 * quartiles(times)[1] / calls for times in seconds.values()]
        table.add(f"{units:,}", *medians, f"{median:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def _repeated(call: Callable[[], None], times: int) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def _times(options: Options) -> Table:
    shape = (2, 4, 8, 8) if options.smallest else (64, 64, 32, 32)
    inputs = torch.randn(*shape, device=options.device, requires_grad=True)
    gradient = torch.randn_like(inputs)
    table = Table(
        f"Layers that drop something, forward and backward on {'×'.join(map(str, shape))}",
        ["layer", "ms", "quartiles", "ours / this"],
    )
    for layers in groups().values():
        members = {name: _pass(layer, inputs, gradient) for name, layer in layers.items()}
        seconds = alternate(members, rounds=options.rounds(30, 5), device=options.device)
        ours = next(iter(layers))
        for name, times in seconds.items():
            low, median, high = (1e3 * value for value in quartiles(times))
            ratio = None if name == ours else median_ratio(seconds[ours], times)
            table.add(name if name == ours else f"  {name}", median, f"{low:.2f} to {high:.2f}", ratio)
    return table


def _pass(layer: Layer, inputs: Tensor, gradient: Tensor) -> Callable[[], None]:
    def forward_and_backward() -> None:
        inputs.grad = None
        torch.autograd.backward(layer(inputs), gradient)

    return forward_and_backward


def _shares(count: int) -> Table:
    libraries = {"torchvision": "torchvision.ops", "timm": "timm.layers"}
    peers = {name: peer(module, "DropBlock2d") for name, module in libraries.items()}
    found = {name: make for name, make in peers.items() if make}
    table = Table(
        "Share that DropBlock drops, block 7",
        ["map and what was asked for", "ours", *found],
        note=f"{count:,} maps, so that the standard error is at most {0.7 / count**0.5:.3f}.",
    )
    for size in (14, 7):
        for p in (0.1, 0.3):
            ones = torch.ones(count, 1, size, size)
            made: list[Layer] = [DropBlock2d(p, block_size=BLOCK), *(make(p, BLOCK) for make in found.values())]
            table.add(f"{size}×{size}, {p}", *(f"{(layer(ones) == 0).float().mean():.3f}" for layer in made))
    return table
