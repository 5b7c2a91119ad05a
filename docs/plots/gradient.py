"""Penalties of weights, and what is done to gradients before the optimizer's step."""

import inspect
import math

import figures
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_reg.callbacks import (
    GradientCentralization,
    GradientClipping,
    GradientNoise,
    L2SPPenalty,
    OrthogonalPenalty,
    SharpnessAwareMinimization,
)
from lightning_reg.callbacks.gradient.weight_penalty import WeightPenalty
from lightning_reg.core.facts import Place
from lightning_reg.functional.gradient.centralization import centralize_
from lightning_reg.functional.gradient.clip_thresholds import percentile_threshold, remember_
from lightning_reg.functional.gradient.clipping import scale_, shrinking_factor
from lightning_reg.functional.gradient.gradient_noise import add_noise_
from lightning_reg.functional.gradient.orthogonality import add_orthogonal_gradient_
from lightning_reg.functional.gradient.penalties import add_l2_sp_gradient_, l2_sp_penalty
from lightning_reg.functional.gradient.sharpness import climb_, climbing_factor
from plots.paths import path
from plots.registry import Kind, draws, usual
from plots.scenes import AMOUNTS, FAINT, SIGNED, image

draws(Place.GRADIENT)(path)
_STEP = 0.4


@draws(WeightPenalty)
def penalty(kind: Kind, figure: Figure) -> str:
    """A penalty along one weight; one that goes by unit over the plane of a unit's two weights."""
    technique = usual(kind, strength=1.0)
    return _over_a_unit(technique, figure) if technique.by_unit else _along_a_weight(technique, figure)


def _along_a_weight(technique: WeightPenalty, figure: Figure) -> str:
    kind = type(technique)
    weights = torch.linspace(-1.5, 1.5, 301)
    values = torch.stack([technique.value([weight.view(1)]) for weight in weights])
    gradients = torch.zeros_like(weights)
    technique.add_gradient_([weights], [gradients], 1.0)
    left, right = figure.subplots(1, 2)
    _value_and_gradient(left, weights, values, gradients)
    _after_a_step(right, weights, weights - _STEP * gradients, "by the gradient")
    if "proximal" in inspect.signature(kind).parameters:
        right.plot(weights, _shrunk(usual(kind, strength=1.0, proximal=True), weights), label="proximal")
        right.legend(fontsize="small")
    else:
        right.get_legend().remove()
    return "The penalty of one weight at strength 1, its gradient, and what it alone makes of the weight in a step."


def _shrunk(technique: WeightPenalty, weights: Tensor) -> Tensor:
    """Returns what a proximal step leaves, behind that of the part that stays in the gradient."""
    rest, shrunk = torch.zeros_like(weights), weights.clone()
    if technique.adds_gradient:
        technique.add_gradient_([weights], [rest], 1.0)
    shrunk -= _STEP * rest
    technique.shrink_([shrunk], _STEP)
    return shrunk


def _value_and_gradient(axes: Axes, weights: Tensor, values: Tensor, gradients: Tensor) -> None:
    axes.plot(weights, values, label="penalty")
    axes.plot(weights, gradients, label="gradient")
    axes.axhline(0, **{**FAINT, "linewidth": 0.6})
    axes.set(xlabel="weight", title="at strength 1")
    axes.legend(fontsize="small")


def _after_a_step(axes: Axes, weights: Tensor, after: Tensor, label: str) -> None:
    axes.plot(weights, weights, linestyle=":", **FAINT)
    axes.plot(weights, after, label=label)
    axes.set(xlabel="weight", title=f"after a step of {_STEP}")
    axes.legend(fontsize="small")


def _over_a_unit(technique: WeightPenalty, figure: Figure) -> str:
    ticks = torch.linspace(-1.6, 1.6, 41)
    values = torch.tensor([[technique.value([torch.stack((x, y)).view(1, 2)]) for x in ticks] for y in ticks])
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.contourf(ticks, ticks, values, levels=12, cmap=AMOUNTS)
    left.set(title="penalty at strength 1", aspect="equal")
    angles = 2 * math.pi * torch.arange(16) / 16
    for radius in (0.35, 0.8, 1.4):
        for angle in angles:
            unit = radius * torch.stack((angle.cos(), angle.sin())).view(1, 2)
            gradient = torch.zeros_like(unit)
            technique.add_gradient_([unit], [gradient], 1.0)
            end = unit - 0.25 * gradient
            right.annotate(
                "", end[0].tolist(), unit[0].tolist(), arrowprops={"arrowstyle": "->", "color": figures.COLORS[0]}
            )
    right.set(title="where it pulls", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    return "The penalty over the two weights of one unit, and where it pulls them."


@draws(OrthogonalPenalty)
def orthogonal(kind: Kind, figure: Figure) -> str:
    """Two units that are pulled apart."""
    units = torch.tensor([[1.35, 0.25], [0.75, 0.55]])
    track = [units]
    for _ in range(200):
        gradient = torch.zeros_like(units)
        add_orthogonal_gradient_([gradient], [units], 1.0)
        units = units - 0.01 * gradient
        track.append(units)
    tracks = torch.stack(track)
    left, right = figure.subplots(1, 2)
    circle = torch.linspace(0, 2 * math.pi, 100)
    left.plot(circle.cos(), circle.sin(), **FAINT, linestyle=":")
    for unit in range(2):
        color = figures.COLORS[unit]
        left.plot(*tracks[:, unit].T, color=color)
        for when, style in ((0, "--"), (-1, "-")):
            left.plot(*torch.stack((torch.zeros(2), tracks[when, unit])).T, style, color=color, linewidth=1.2)
    left.set(aspect="equal", title="weights of two units", xlim=(-0.4, 1.5), ylim=(-1.1, 1.1))
    right.plot(tracks.norm(dim=2)[:, 0], label="length of one", color=figures.COLORS[0])
    right.plot(tracks.norm(dim=2)[:, 1], label="of the other", color=figures.COLORS[1])
    cosine = (tracks[:, 0] * tracks[:, 1]).sum(1) / tracks.norm(dim=2).prod(1)
    right.plot(cosine, label="cosine between", color=figures.COLORS[2])
    right.set(xlabel="step down the penalty")
    right.legend(fontsize="small")
    return "Two units of two weights, dashed, that go down the penalty alone: both get length 1, and the angle 90°."


@draws(L2SPPenalty)
def toward_the_start(kind: Kind, figure: Figure) -> str:
    """The penalty along a weight that began at 1."""
    weights, start = torch.linspace(-1.5, 2.5, 301), torch.ones(1)
    values = torch.stack([l2_sp_penalty([weight.view(1)], [start], 1.0) for weight in weights])
    gradients = torch.zeros_like(weights)
    add_l2_sp_gradient_([gradients], [weights], [start.expand(len(weights))], 1.0)
    left, right = figure.subplots(1, 2)
    _value_and_gradient(left, weights, values, gradients)
    _after_a_step(right, weights, weights - _STEP * gradients, "L2-SP")
    for axes in (left, right):
        axes.axvline(1, **FAINT, linestyle="--")
    right.get_legend().remove()
    return "The penalty of a weight that began at 1, dashed: it pulls there, and not to 0."


@draws(GradientClipping)
def clipping(kind: Kind, figure: Figure) -> str:
    """Lengths of gradients in a hundred steps, as they came and as they leave."""
    generator = torch.Generator().manual_seed(3)
    came = torch.randn(100, generator=generator).mul(0.6).exp() * torch.linspace(2, 0.8, 100)
    came[torch.tensor([23, 24, 61, 80])] *= 7
    history, count = torch.full((100,), torch.nan), torch.tensor(0)
    left, right = figure.subplots(1, 2, sharey=True)
    bounds, lengths = [], []
    for norm in came:
        bound = percentile_threshold(history, 90.0)
        remember_(history, count, norm)
        bounds.append(bound)
        lengths.append(_clipped(norm, bound))
    for axes, left_over, title in (
        (left, torch.stack([_clipped(norm, 2.0) for norm in came]), "norm: at most 2"),
        (right, torch.stack(lengths), "percentile: of those before"),
    ):
        axes.plot(came, **FAINT)
        axes.plot(left_over)
        axes.set(title=title, xlabel="step", yscale="log")
    right.plot(torch.stack(bounds), "--", linewidth=1)
    left.axhline(2, linestyle="--", linewidth=1, color=figures.COLORS[1])
    left.set_ylabel("length of the gradient")
    return "Lengths of noisy gradients with four outliers, gray, and what is left of them under two of the algorithms."


def _clipped(norm: Tensor, bound: float | Tensor) -> Tensor:
    gradient = norm.clone().view(1)
    scale_([gradient], shrinking_factor(norm, bound))
    return gradient[0]


@draws(GradientCentralization)
def centralization(kind: Kind, figure: Figure) -> str:
    """A gradient before and after, and the means of its rows."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(6, 8, generator=generator) * 0.6 + torch.tensor([1.0, -0.8, 0.2, 0.9, -1.0, 0.5]).view(6, 1)
    after = before.clone()
    centralize_([after])
    axes = figure.subplots(1, 3, width_ratios=(2, 2, 1.2))
    for panel, values, title in zip(axes, (before, after), ("gradient", "centralized"), strict=False):
        image(panel, values, title, cmap=SIGNED, low=-2, high=2)
        panel.set(ylabel="units", xlabel="weights into them")
    axes[2].barh(range(6), before.mean(1), color=figures.COLORS[1], alpha=0.7)
    axes[2].plot(after.mean(1), range(6), "o", color=figures.COLORS[0], markersize=4)
    axes[2].set(title="mean", yticks=[], ylim=(5.5, -0.5))
    axes[2].title.set_fontsize("small")
    return "A layer's gradient, each unit a row: the mean of each row, bars, is taken off, and what is left has mean 0."


@draws(GradientNoise)
def noise(kind: Kind, figure: Figure) -> str:
    """One gradient with many draws of the noise, early and late."""
    technique = kind(eta=0.1)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    gradient = torch.tensor([1.0, 0.6])
    for panel, step in zip(axes, (0, 1000), strict=True):
        deviation = (technique.eta / (1 + step) ** technique.gamma) ** 0.5
        noisy = gradient.repeat(150, 1)
        add_noise_([noisy], deviation, torch.Generator().manual_seed(step))
        panel.plot(*noisy.T, ".", alpha=0.5, markersize=4)
        panel.annotate("", gradient.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "color": figures.COLORS[1]})
        panel.set(title=f"step {step:,}: σ = {deviation:.2f}", aspect="equal", xlim=(-0.3, 2.1), ylim=(-0.4, 1.6))
    return "A gradient of two entries, and 150 draws of what the optimizer steps with: the noise fades."


@draws(SharpnessAwareMinimization)
def sharpness(kind: Kind, figure: Figure) -> str:
    """A loss with a narrow and a wide minimum, and that of the worst weight nearby."""
    rho = 0.25
    places = torch.linspace(-2, 2, 401)
    worst = places.clone()
    for weight, slope in zip(worst, _slope(places), strict=True):
        row = weight.view(1)
        climb_([row], [slope.view(1)], [torch.empty(1)], climbing_factor(slope.norm(), rho))
    axes = figure.subplots()
    axes.plot(places, _height(places), label="loss", color=figures.INK, alpha=0.6)
    axes.plot(places, _height(worst), label=f"a climb of ρ = {rho} away")
    here = torch.tensor([-0.93])
    there = here.clone()
    slope = _slope(here)
    climb_([there], [slope], [torch.empty(1)], climbing_factor(slope.norm(), rho))
    axes.annotate(
        "",
        (there.item(), _height(there).item()),
        (here.item(), _height(here).item()),
        arrowprops={"arrowstyle": "->", "color": figures.COLORS[1], "linewidth": 1.6},
    )
    axes.plot(here, _height(here), "o", color=figures.COLORS[1])
    axes.set(xlabel="weight", ylim=(-0.05, 1.6))
    axes.legend(fontsize="small", loc="upper center")
    return (
        "A loss whose deepest minimum is narrow. Where SAM takes its gradient, a step of ρ uphill (arrow), the narrow "
        "minimum is no better than the wide one."
    )


def _height(place: Tensor) -> Tensor:
    narrow, wide = 1 - (-((place + 1) ** 2) / 0.03).exp(), 1 - 0.85 * (-((place - 0.7) ** 2) / 0.4).exp()
    return narrow + wide - 0.9 + 0.06 * place.square()


def _slope(place: Tensor) -> Tensor:
    point = place.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(_height(point).sum(), point)
    return slope
