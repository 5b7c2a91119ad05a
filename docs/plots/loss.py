"""Terms of the loss, and losses of other targets or inputs."""

from typing import Any

import figures
import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_reg.callbacks import (
    ActivityPenalty,
    AdversarialTraining,
    ConcreteDropoutPenalty,
    DecorrelationPenalty,
    InputGradientPenalty,
    JacobianPenalty,
    RDrop,
)
from lightning_reg.core.facts import Place
from lightning_reg.core.technique import Technique
from lightning_reg.functional.forward.concrete_dropout import concrete_regularization
from lightning_reg.functional.loss.output_penalties import (
    activity_penalty,
    decorrelation_penalty,
    symmetric_divergence,
)
from plots.registry import Kind, draws, usual
from plots.scenes import FAINT, SIGNED, Module, cross_entropy, fit, moons

_LOGITS = torch.linspace(-4, 8, 61)


class _Backward(Callback):
    """Keeps the loss that goes into backward, and its gradient by the logits."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.slopes: list[float] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Keeps the loss with every term."""
        self.losses.append(loss.item())

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Keeps the gradient by the first class's logit."""
        self.slopes.append(pl_module.network.weight.grad[0].item())


class _Shift(nn.Module):
    """Logits as they are, plus weights of 0, whose gradient is that of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.weight


def _over_logits(*techniques: Technique) -> tuple[list[float], list[float]]:
    batches = [(torch.tensor([[logit, 0.0, 0.0]]), torch.tensor([0])) for logit in _LOGITS.tolist()]
    seen = _Backward()
    torch.manual_seed(0)
    fit(Module(_Shift(), cross_entropy), batches, *techniques, seen)
    return seen.losses, seen.slopes


@draws(Place.LOSS)
def over_logits(kind: Kind, figure: Figure) -> str:
    """The loss of one sample over the logit of its class."""
    technique = usual(kind, highest=True)
    strong = ", ".join(f"{name} {value:g}" for name, value in _strengths(technique).items())
    left, right = figure.subplots(1, 2)
    for values, label, style in (
        (_over_logits(), "cross entropy", FAINT),
        (_over_logits(technique), "with the technique", {}),
    ):
        for axes, line in zip((left, right), values, strict=True):
            axes.plot(_LOGITS, line, label=label, **style)
    right.axhline(0, **{**FAINT, "linewidth": 0.6})
    for axes, title in ((left, "loss"), (right, "its gradient by that logit")):
        axes.set(xlabel="logit of the right class", title=title)
    left.legend(fontsize="small")
    return (
        f"The loss of a sample of three classes, by the logit of the right one; those of the others are 0 ({strong})."
    )


def _strengths(technique: Technique) -> dict[str, float]:
    found = {usually.setting: getattr(technique, usually.setting) for usually in technique.usual_ranges}
    return {name: value for name, value in found.items() if not isinstance(value, str)}


@draws(ActivityPenalty)
def activity(kind: Kind, figure: Figure) -> str:
    """Both penalties along one activation."""
    values = torch.linspace(-2, 2, 201)
    left, right = figure.subplots(1, 2)
    for settings in ({"l1": 1.0}, {"l2": 1.0}):
        points = values.clone().requires_grad_()
        penalties = torch.stack([activity_penalty(point.view(1), **settings) for point in points])
        (slopes,) = torch.autograd.grad(penalties.sum(), points)
        left.plot(values, penalties.detach(), label=f"{next(iter(settings))} = 1")
        right.plot(values, slopes)
    left.set(xlabel="activation", title="penalty")
    right.set(xlabel="activation", title="gradient")
    left.legend(fontsize="small")
    return "What one activation adds to the loss at strength 1, and how it is pulled."


@draws(DecorrelationPenalty)
def decorrelation(kind: Kind, figure: Figure) -> str:
    """Two units' activations over a batch, before and after going down the penalty."""
    generator = torch.Generator().manual_seed(0)
    units = torch.randn(200, 2, generator=generator) @ torch.tensor([[1.0, 0.85], [0.0, 0.5]])
    mixing = torch.eye(2).requires_grad_()
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    before = units
    for _ in range(400):
        (slope,) = torch.autograd.grad(decorrelation_penalty(units @ mixing, 1.0), mixing)
        with torch.no_grad():
            mixing -= 0.2 * slope
    after = (units @ mixing).detach()
    for panel, values, title in zip(axes, (before, after), ("before", "after"), strict=True):
        correlation = torch.corrcoef(values.T)[0, 1].item()
        panel.plot(*values.T, ".", markersize=3, alpha=0.6)
        panel.set(title=f"{title}: correlation {correlation:.2f}", xlabel="first unit", aspect="equal")
    axes[0].set_ylabel("second unit")
    return "Activations of two units for 200 samples, before and after steps down the penalty alone."


@draws(RDrop)
def divergence(kind: Kind, figure: Figure) -> str:
    """What two predictions of one sample, made under two dropout masks, cost."""
    shares = torch.linspace(0.01, 0.99, 99)
    axes = figure.subplots()
    for other, color in ((0.5, 0), (0.8, 1), (0.95, 2)):
        second = torch.tensor([[torch.tensor(other).logit(), 0.0]])
        costs = [symmetric_divergence(torch.tensor([[share.logit(), 0.0]]), second, 1.0) for share in shares]
        axes.plot(shares, torch.stack(costs), label=f"the other says {other}", color=figures.COLORS[color])
    axes.set(xlabel="probability of a class under one mask", ylabel="term at α = 1", ylim=(-0.05, 2))
    axes.legend(fontsize="small")
    return "The term that two predictions of a sample add, made under two dropout masks: nothing where they agree."


@draws(ConcreteDropoutPenalty)
def learned_rate(kind: Kind, figure: Figure) -> str:
    """The term over the rate, for layers with small and large weights."""
    rates = torch.linspace(0.005, 0.97, 150)
    axes = figure.subplots()
    for size, color in ((0.1, 0), (0.5, 1), (1.5, 2)):
        weight = torch.full((32, 32), size)
        terms = torch.stack(
            [concrete_regularization(weight, rate.logit(), 32, length_scale=0.1, num_samples=1000) for rate in rates]
        )
        axes.plot(rates, terms, label=f"weights of {size}", color=figures.COLORS[color])
        lowest = int(terms.argmin())
        axes.plot(rates[lowest], terms[lowest], "o", color=figures.COLORS[color])
    axes.set(xlabel="rate of dropping", ylabel="term", ylim=(-0.03, 0.05))
    axes.legend(fontsize="small")
    return "The term of a layer over its rate, lowest at the dots: the entropy asks for 0.5, large weights for less."


@draws(AdversarialTraining, InputGradientPenalty, JacobianPenalty)
def borders(kind: Kind, figure: Figure) -> str:
    """What a network makes of two half moons, with a technique and without."""
    settings = {
        AdversarialTraining: {"eps": 0.2, "clip": None},
        InputGradientPenalty: {"weight": 1.0},
        JacobianPenalty: {"weight": 0.05},
    }[kind]
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, techniques, title in zip(axes, ((), (kind(**settings),)), ("without", "with"), strict=True):
        network = _learned(*techniques)
        ticks = torch.linspace(-2, 2, 61)
        grid = torch.cartesian_prod(ticks, ticks)
        with torch.no_grad():
            shares = network(grid).softmax(1)[:, 1].view(61, 61).T
        panel.imshow(
            2 * shares - 1,
            extent=(-2, 2, -2, 2),
            origin="lower",
            cmap=SIGNED,
            alpha=0.5,
            vmin=-1,
            vmax=1,
            interpolation="bilinear",
        )
        panel.contour(ticks, ticks, shares, levels=[0.5], colors=figures.INK, linewidths=1)
        places, labels = moons(60, seed=2)
        for label, color in ((0, 1), (1, 0)):
            panel.plot(*places[labels == label].T, ".", color=figures.COLORS[color])
        panel.set(title=title, aspect="equal", xticks=[], yticks=[])
    chosen = ", ".join(f"{name} {value:g}" for name, value in settings.items() if value is not None)
    return (
        f"What a network of 64 hidden units learns of sixty points ({chosen}). It isn't sure where colors are pale; "
        "points near the line need only be moved a little to be taken for others."
    )


def _learned(*techniques: Technique) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2))

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.05)

    fit(Module(network, cross_entropy, optimizer=adam), [moons(60, seed=2)] * 250, *techniques)
    return network.eval()
