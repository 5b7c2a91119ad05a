"""Constraints, decay and averages: what becomes of weights after the step."""

from collections.abc import Iterable
from typing import Any

import figures
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_reg.callbacks import (
    CautiousWeightDecay,
    ExponentialMovingAverage,
    LatestWeightAverage,
    Lookahead,
    ScheduleFreeMode,
    SnapshotEnsemble,
    StochasticWeightAverage,
    WiSEFT,
)
from lightning_reg.callbacks.weights.constraint import Constraint
from lightning_reg.core.facts import Place
from lightning_reg.functional.annealing import annealed, cycle_ends
from lightning_reg.functional.weights.cautious_decay import decay_cautiously_
from plots.paths import follow, path, show
from plots.registry import Kind, draws, usual
from plots.scenes import FAINT

draws(Place.WEIGHTS)(path)


@draws(Constraint)
def projection(kind: Kind, figure: Figure) -> str:
    """Units of two weights, and what they are projected onto."""
    technique = usual(kind, strength=1.0)
    before = 1.1 * torch.randn(80, 2, generator=torch.Generator().manual_seed(1))
    before = before[before.norm(dim=1) < 2.2][:60]
    after = before.clone()
    technique.project_([after], 1.0)
    moved = (after != before).any(1)
    axes = figure.subplots()
    for start, end in zip(before[moved], after[moved], strict=True):
        axes.annotate(
            "", end.tolist(), start.tolist(), arrowprops={"arrowstyle": "->", "alpha": 0.5, "color": figures.INK}
        )
    axes.plot(*before.T, "o", markersize=3, color=figures.INK, alpha=0.5, label="after the optimizer's step")
    axes.plot(*after.T, "o", markersize=4, label="projected")
    axes.axhline(0, **{**FAINT, "linewidth": 0.5})
    axes.axvline(0, **{**FAINT, "linewidth": 0.5})
    axes.set(aspect="equal", xlim=(-2.3, 2.3), ylim=(-2.3, 2.3))
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    what = "Sixty units of two weights each" if technique.by_unit else "Sixty pairs of weights"
    return f"{what}, as a step has left them, and where they are put: {int(moved.sum())} of 60 are moved."


@draws(CautiousWeightDecay)
def cautious(kind: Kind, figure: Figure) -> str:
    """A weight of 1 after steps of different lengths, decayed always and cautiously."""
    steps = torch.linspace(-0.5, 0.5, 201)
    before, share = torch.ones_like(steps), 0.1
    after = before - steps
    cautiously = after.clone()
    decay_cautiously_([cautiously], [before], share)
    axes = figure.subplots()
    axes.plot(steps, after - 1, linestyle=":", **FAINT, label="the optimizer's step alone")
    axes.plot(steps, after - 1 - share * before, "--", color=figures.COLORS[1], label="with weight decay")
    axes.plot(steps, cautiously - 1, color=figures.COLORS[0], label="with cautious weight decay")
    axes.set(xlabel="step toward zero that the optimizer makes", ylabel="change of a weight of 1")
    axes.legend(fontsize="small")
    return "How a weight of 1 changes, by where the optimizer moves it: what moves away from zero isn't decayed."


@draws(ExponentialMovingAverage)
def moving_average(kind: Kind, figure: Figure) -> str:
    """The path of trained weights, and of their average."""
    return show(figure, follow(kind(decay=0.9)))


@draws(LatestWeightAverage)
def latest(kind: Kind, figure: Figure) -> str:
    """The path of trained weights, and of the mean of the latest."""
    return show(figure, follow(kind(window=10)))


@draws(StochasticWeightAverage)
def stochastic_average(kind: Kind, figure: Figure) -> str:
    """The path of trained weights, and of their mean from the middle of training on."""
    return show(figure, follow(kind(start=0.5)))


@draws(Lookahead)
def slow_and_fast(kind: Kind, figure: Figure) -> str:
    """The fast weights, which go back a part of the way every few steps, and where they go back to."""
    k = 8
    fast = torch.cat(follow(kind(k=k, alpha=0.5)).trained)
    plain = torch.cat(follow().trained)
    axes = figure.subplots()
    axes.plot(plain[:, 1], **FAINT, label="without")
    axes.plot(fast[:, 1], linewidth=1, color=figures.COLORS[1], label="fast weights")
    slow = range(k - 1, len(fast), k)
    axes.plot(slow, fast[k - 1 :: k, 1], "o-", color=figures.COLORS[0], label="slow weights")
    axes.set(xlabel="step", ylabel="a weight")
    axes.legend(fontsize="small")
    return (
        f"A weight under noisy gradients: every {k} steps it goes back half of the way to where it was {k} steps ago."
    )


@draws(WiSEFT)
def between(kind: Kind, figure: Figure) -> str:
    """The path of trained weights, and of those halfway from the start."""
    return show(figure, follow(kind(alpha=0.5)))


class _ScheduleFree(torch.optim.Optimizer):
    """Descent without a schedule: gradients at y between iterates z and their mean x."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, beta: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta, "train_mode": True, "count": 0})

    def _switch(self, *, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not training:
                for weight in group["params"]:
                    if "z" in self.state[weight]:
                        share = 1 - group["beta"] if training else 1 - 1 / group["beta"]
                        weight.data.lerp_(self.state[weight]["z"], share)
                group["train_mode"] = training

    def train(self) -> None:
        """Puts y in."""
        self._switch(training=True)

    def eval(self) -> None:
        """Puts x in."""
        self._switch(training=False)

    def step(self, closure: Any = None) -> Any:
        """Makes a step of z, and the mean of x go on."""
        loss = closure() if closure else None
        for group in self.param_groups:
            group["count"] += 1
            for weight in group["params"]:
                z = self.state[weight].setdefault("z", weight.detach().clone())
                x = torch.lerp(weight.data, z, 1 - 1 / group["beta"])
                z.sub_(weight.grad, alpha=group["lr"])
                x.lerp_(z, 1 / group["count"])
                weight.data.copy_(torch.lerp(x, z, 1 - group["beta"]))
        return loss


@draws(ScheduleFreeMode)
def schedule_free(kind: Kind, figure: Figure) -> str:
    """The path of the weights that gradients are computed at, and of those that are evaluated."""

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return _ScheduleFree(parameters, lr=0.25)

    track = follow(kind(), optimizer=optimizer)
    return show(figure, track, without=track)


@draws(SnapshotEnsemble)
def cycles(kind: Kind, figure: Figure) -> str:
    """The learning rate's cycles, and when snapshots are taken."""
    ends = cycle_ends(300, 5)
    rates: list[float] = []
    for start, end in zip([0, *ends], ends, strict=False):
        rates += [annealed(1.0, 0.0, (step - start) / (end - start)) for step in range(start, end)]
    axes = figure.subplots()
    axes.plot(rates)
    axes.plot(
        [end - 1 for end in ends], [rates[end - 1] for end in ends], "o", color=figures.COLORS[1], label="snapshot"
    )
    axes.set(xlabel="step", ylabel="learning rate / the optimizer's", ylim=(-0.05, 1.15))
    axes.legend(fontsize="small", loc="upper right")
    return "The learning rate in five cycles of 300 steps in all: each ends in a minimum, whose weights are kept."
