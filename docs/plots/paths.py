"""Where two weights go in a noisy valley, with a technique and without."""

from collections.abc import Callable, Iterable
from typing import Any

import figures
import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_reg.core.technique import Technique
from plots.registry import Kind, usual
from plots.scenes import FAINT, Validated, fit

__all__ = ["Track", "follow", "path", "show"]

_STEPS = 80
_CURVATURE, _NOISE = torch.tensor([[0.4, 4.0]]), torch.tensor([0.7, 2.0])


class Track(Callback):
    """Keeps the weights that each step leaves, and those that each validation sees."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.evaluated: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keeps what was trained."""
        self.trained.append(pl_module.network.weight.detach().clone())


def follow(
    *techniques: Technique, optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None, steps: int = _STEPS
) -> Track:
    """Returns where the two weights of a linear layer went; each step is an epoch, and is validated."""
    network = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[-1.7, 1.0]]))
    noise = _NOISE * torch.randn(steps, 1, 2, generator=torch.Generator().manual_seed(5))
    step = iter(noise)
    track = Track()

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        return (0.5 * _CURVATURE * network.weight.square() + next(step) * network.weight).sum()

    def look(network: nn.Module, batch: Tensor) -> None:
        track.evaluated.append(network.weight.detach().clone())

    def descent(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.12)

    torch.manual_seed(0)
    module = Validated(network, loss, look, optimizer or descent)
    fit(module, [torch.zeros(1)], *techniques, track, epochs=steps, validation=[torch.zeros(1)])
    return track


def path(kind: Kind, figure: Figure) -> str:
    """Where the weights go with a technique at its usual settings, and where without."""
    return show(figure, follow(usual(kind)))


def show(figure: Figure, track: Track, without: Track | None = None) -> str:
    """Draws a path beside the one that the same steps take without the technique.

    Args:
        figure: That is drawn into.
        track: With the technique.
        without: Without; plain descent where None.
    """
    plain = torch.cat((without or follow()).trained)
    trained, evaluated = torch.cat(track.trained), torch.cat(track.evaluated)
    is_swapped = not torch.equal(trained, evaluated)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    ticks = torch.linspace(-2.2, 1.8, 41)
    heights = 0.5 * (_CURVATURE[0, 0] * ticks.square().unsqueeze(0) + _CURVATURE[0, 1] * ticks.square().unsqueeze(1))
    left.contour(ticks, ticks, heights, levels=[0.05, 0.3, 1, 2.5, 5], colors=figures.INK, alpha=0.25, linewidths=0.8)
    lines = [(plain, "without", FAINT)]
    if not torch.equal(trained, plain):
        lines.append((trained, "with, as trained" if is_swapped else "with", {"color": figures.COLORS[1]}))
    elif is_swapped:
        lines = [(plain, "as trained", FAINT)]
    if is_swapped:
        lines.append((evaluated, "as evaluated", {"color": figures.COLORS[0], "linewidth": 1.8}))
    for track_of, label, style in lines:
        left.plot(*track_of.T, **{"linewidth": 1.0, **style})
        right.plot(track_of[:, 1], label=label, **{"linewidth": 1.0, **style})
    left.set(xlim=(-2, 0.8), ylim=(-1.4, 1.4), xlabel="first weight", ylabel="second weight")
    right.set(xlabel="step", title="second weight")
    right.legend(fontsize="small")
    return (
        "Two weights on their way down a valley, by noisy gradients: as they are trained, and as they are evaluated."
        if is_swapped
        else "Two weights on their way down a valley, by the same noisy gradients with and without it."
    )
