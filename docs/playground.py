"""Data of the interactive charts in docs/play.md, precomputed for all slider positions when the site is built.

Each chart has sliders. A frame is the content of the chart for one position of all sliders: lines, a vertical line,
dots, and a sentence. docs/_static/play.js draws frames, independently of their meaning.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["write"]

Plot = dict[str, Any]


def write(folder: Path, library: str) -> None:
    """Writes each chart as a part of a page, if this module or the library has changed.

    Args:
        folder: Output folder.
        library: Digest of the library's code.
    """
    digest = hashlib.sha256((library + Path(__file__).read_text(encoding="utf-8")).encode()).hexdigest()
    stamp = folder / "digest.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, make in _PLOTS.items():
        data = json.dumps(make(), separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
        html = f'<figure class="play" id="play-{name}"><script type="application/json">{data}</script></figure>\n'
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    stamp.write_text(digest, encoding="utf-8")


def _slider(label: str, values: Iterable[float | int], start: int, unit: str = "") -> dict[str, Any]:
    return {"label": label, "values": [f"{value:.3g}{unit}" for value in values], "start": start}


def _axis(label: str, low: float, high: float, ticks: Sequence[float], *, logarithmic: bool = False) -> dict[str, Any]:
    return {"label": label, "low": low, "high": high, "ticks": list(ticks), "log": logarithmic}


def _line(x: Tensor, y: Tensor, color: int, name: str = "", **more: Any) -> dict[str, Any]:
    points = [[float(f"{a:.4g}"), float(f"{b:.4g}")] for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return {"points": points, "color": color, **({"name": name} if name else {}), **more}


def _dropout() -> Plot:
    """Returns the chart of training and test accuracy for several widths and dropout rates, on 100 digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.tensor(digits.data).float()[order] / 16, torch.tensor(digits.target)[order]
    widths, rates, seeds = (8, 16, 64, 256), torch.arange(9) / 10, 3
    accuracies = {width: _trained(images, labels, width, rates, seeds) for width in widths}
    frames = []
    for width, (index, rate) in itertools.product(widths, enumerate(rates.tolist())):
        train, test = accuracies[width]
        frames.append(
            {
                "lines": [_line(rates, train, 0, "training"), _line(rates, test, 1, "test")],
                "vertical": rate,
                "text": f"{width} hidden units at rate {rate:.1f}: {100 * train[index]:.1f} % of the 100 training "
                f"digits are right, {100 * test[index]:.1f} % of 1,697 others; a gap of "
                f"{100 * (train[index] - test[index]):.1f} points.",
            }
        )
    return {
        "sliders": [_slider("hidden units", widths, 2), _slider("dropout rate", rates.tolist(), 3)],
        "x": _axis("dropout rate", 0, 0.8, [0, 0.2, 0.4, 0.6, 0.8]),
        "y": _axis("accuracy", 0.3, 1, [0.4, 0.6, 0.8, 1]),
        "frames": frames,
    }


def _trained(images: Tensor, labels: Tensor, width: int, rates: Tensor, seeds: int) -> tuple[Tensor, Tensor]:
    """Trains all rates and seeds in parallel; returns mean accuracies on the first 100 digits and the rest, by rate."""
    generator = torch.Generator().manual_seed(width)
    count, train = len(rates) * seeds, 100
    rate = rates.repeat_interleave(seeds).view(-1, 1, 1)
    first = torch.randn(count, 64, width, generator=generator) * (2 / 64) ** 0.5
    second = torch.randn(count, width, 10, generator=generator) * (2 / width) ** 0.5
    weights = [first.requires_grad_(), second.requires_grad_(), torch.zeros(count, 1, 10).requires_grad_()]
    optimizer = torch.optim.Adam(weights, lr=0.01)
    inputs = images[:train].expand(count, -1, -1)
    for _ in range(120):
        hidden = torch.relu(inputs @ weights[0])
        kept = torch.rand(hidden.shape, generator=generator) >= rate
        logits = hidden * kept / (1 - rate) @ weights[1] + weights[2]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:train].repeat(count), reduction="sum") / train
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = torch.stack(
            [
                (torch.relu(images @ weights[0][i]) @ weights[1][i] + weights[2][i]).argmax(1) == labels
                for i in range(count)
            ]
        ).float()
    by_rate = right.view(len(rates), seeds, -1).mean(1)
    return by_rate[:, :train].mean(1), by_rate[:, train:].mean(1)


def _alpha() -> Plot:
    """Returns the chart of the density of Beta(α, α), from which Mixup and CutMix draw λ."""
    from scipy.stats import beta

    alphas = [float(f"{10**exponent:.2g}") for exponent in torch.linspace(-1.3, 0.9, 23).tolist()]
    shares = torch.linspace(0.005, 0.995, 100)
    frames = []
    for alpha in alphas:
        distribution = beta(alpha, alpha)
        untouched = 2 * distribution.cdf(0.05)
        minor = 2 * distribution.expect(lambda share: share, lb=0, ub=0.5)
        density = torch.tensor(distribution.pdf(shares.numpy())).clamp(max=5)
        frames.append(
            {
                "lines": [_line(shares, density, 0, area=True)],
                "text": f"At α = {alpha:g} the lesser of two samples has {100 * minor:.0f} % of a mix on average; "
                f"{100 * untouched:.0f} % of mixes have less than 5 % of it.",
            }
        )
    return {
        "sliders": [_slider("α", alphas, 9)],
        "x": _axis("λ, share of the first sample", 0, 1, [0, 0.25, 0.5, 0.75, 1]),
        "y": _axis("density", 0, 4, [0, 1, 2, 3, 4]),
        "frames": frames,
    }


def _half_life() -> Plot:
    """Returns the chart of the weight that each of the last steps has in an exponential moving average."""
    from lightning_reg.functional.weights.averaging import decay_of_half_life

    half_lives = [1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 80, 100]
    steps = torch.arange(201)
    frames = []
    for half_life in half_lives:
        decay = decay_of_half_life(half_life)
        shares = (1 - decay) * decay ** steps.double()
        noise = ((1 - decay) / (1 + decay)) ** 0.5
        frames.append(
            {
                "lines": [_line(-steps, shares, 0, area=True)],
                "vertical": -half_life,
                "text": f"A half-life of {half_life} step{'s' * (half_life > 1)} is a decay of {decay:.4f}: the newest "
                f"step counts {100 * (1 - decay):.3g} %, one a half-life ago half of that, and noise that is "
                f"independent from step to step is left at {100 * noise:.3g} % of its size.",
            }
        )
    return {
        "sliders": [_slider("half-life", half_lives, 7, " steps")],
        "x": _axis("step, counted back from now", -200, 0, [-200, -150, -100, -50, 0]),
        "y": _axis("share of the average", 0, 0.1, [0, 0.025, 0.05, 0.075, 0.1]),
        "frames": frames,
    }


def _l1_path() -> Plot:
    """Returns the chart of the weights of a linear model under an L1 penalty, by proximal gradient descent."""
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import lasso_path

    from lightning_reg.functional.weights.proximal import soft_threshold_

    table = load_diabetes()
    inputs, targets = torch.tensor(table.data), torch.tensor(table.target)
    inputs = inputs / inputs.std(0)
    targets = (targets - targets.mean()) / targets.std()
    count = len(targets)
    strengths = torch.logspace(-3, -0.2, 57, dtype=torch.float64)
    rate = 1 / torch.linalg.matrix_norm(inputs, 2).square() * count
    paths = torch.zeros(len(strengths), inputs.shape[1], dtype=torch.float64)
    products, correlations = inputs.T @ inputs / count, inputs.T @ targets / count
    for _ in range(3000):  # all strengths in parallel, one per row
        paths -= rate * (paths @ products - correlations)
        shrunk = paths / strengths.unsqueeze(1)  # so that all have the same threshold
        soft_threshold_([shrunk], rate.item())
        paths = shrunk * strengths.unsqueeze(1)
    _, theirs, _ = lasso_path(inputs.numpy(), targets.numpy(), alphas=strengths.flip(0).numpy(), tol=1e-10)
    torch.testing.assert_close(paths, torch.tensor(theirs).flip(1).T, rtol=0, atol=1e-3)
    lines = [
        _line(strengths, paths[:, index], index, name, thin=True) for index, name in enumerate(table.feature_names)
    ]
    frames = []
    for strength, weights in zip(strengths.tolist(), paths, strict=True):
        kept = [name for name, weight in zip(table.feature_names, weights.tolist(), strict=True) if weight]
        explained = 1 - (targets - inputs @ weights).square().mean() / targets.square().mean()
        frames.append(
            {
                "vertical": strength,
                "text": f"λ = {strength:.3g}: {len(kept)} of 10 weights aren't exactly zero"
                f"{' (' + ', '.join(kept) + ')' if kept else ''}; they explain {100 * explained:.0f} % of the "
                "variance.",
            }
        )
    return {
        "sliders": [_slider("λ", strengths.tolist(), 30)],
        "x": _axis("λ", 1e-3, 10**-0.2, [1e-3, 1e-2, 1e-1], logarithmic=True),
        "y": _axis("weight", -0.5, 0.5, [-0.4, -0.2, 0, 0.2, 0.4]),
        "lines": lines,
        "frames": frames,
    }


def _landscape(place: Tensor) -> Tensor:
    """Returns the height of a valley that is narrow and deepest on the left, and wide on the right."""
    x, y = place[..., 0], place[..., 1]
    return 0.5 * _curvature(x) * y.square() + 0.02 * (x + 1.2).square()


def _curvature(x: Tensor) -> Tensor:
    return 0.3 + 10 * torch.sigmoid(-2 * x)


def _rho() -> Plot:
    """Returns the chart of sharpness-aware descent for several radii of the neighborhood."""
    from contourpy import contour_generator

    from lightning_reg.functional.gradient.sharpness import climb_, climbing_factor

    xs, ys = torch.linspace(-1.8, 1.8, 73), torch.linspace(-1.2, 1.2, 61)
    heights = _landscape(torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1))
    contours = contour_generator(xs.numpy(), ys.numpy(), heights.numpy())
    lines = [
        _line(torch.tensor(part[::2, 0]), torch.tensor(part[::2, 1]), -1, thin=True)
        for level in (0.005, 0.02, 0.06, 0.14, 0.3, 0.6, 1.2, 2.4, 4.8)
        for part in contours.lines(level)
    ]
    radii = torch.linspace(0, 0.5, 26)
    place, path = torch.tensor([-1.5, 0.9]).repeat(len(radii), 1), []
    for _ in range(600):  # all radii in parallel
        path.append(place)
        slope = _slope(place)
        there = place.clone()
        for row, gradient, radius in zip(there, slope, radii.tolist(), strict=True):
            climb_([row], [gradient], [torch.empty_like(row)], climbing_factor(gradient.norm(), radius))
        place = place - 0.05 * _slope(there)
    tracks = torch.stack(path, 1)  # (radii, steps, 2)
    ends = tracks[:, -100:].mean(1)  # averaged, because it oscillates around the floor
    frames = []
    for radius, track, end in zip(radii.tolist(), tracks, ends, strict=True):
        frames.append(
            {
                "lines": [_line(track[::3, 0], track[::3, 1], 1, thin=True)],
                "dots": [[float(f"{value:.3f}") for value in point.tolist()] for point in (track[0], end)],
                "text": f"ρ = {radius:.2f}: after 600 steps it is at {end[0]:.2f} on the floor of the valley, where "
                f"the curvature across is {_curvature(end[0]):.1f}.",
            }
        )
    return {
        "sliders": [_slider("ρ", radii.tolist(), 8)],
        "x": _axis("first weight", -1.8, 1.8, [-1, 0, 1]),
        "y": _axis("second weight", -1.2, 1.2, [-1, 0, 1]),
        "lines": lines,
        "frames": frames,
    }


def _slope(place: Tensor) -> Tensor:
    point = place.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(_landscape(point).sum(), point)
    return slope


_PLOTS: Mapping[str, Callable[[], Plot]] = {
    "dropout": _dropout,
    "alpha": _alpha,
    "half-life": _half_life,
    "l1-path": _l1_path,
    "rho": _rho,
}
