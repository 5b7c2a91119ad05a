"""When training ends, and what monitors show."""

import inspect
import re
from collections import OrderedDict
from typing import Any

import figures
import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from lightning_reg.callbacks import (
    BatchImages,
    BatchMixing,
    BestWeightsEarlyStopping,
    GeneralizationGap,
    GradientClipping,
    GradientMonitor,
    TemperatureScaling,
    WeightDistribution,
)
from lightning_reg.core.facts import Place
from lightning_reg.functional.measures.calibration import best_temperature, reliability, scaled_loss
from lightning_reg.functional.measures.histograms import linear_histogram
from plots.batch import mixed
from plots.registry import Kind, draws, usual
from plots.scenes import FAINT, Curves, Validated, cross_entropy, fit, moons

_EPOCHS = 40


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "first": nn.Linear(2, 64),
        "relu1": nn.ReLU(),
        "second": nn.Linear(64, 64),
        "relu2": nn.ReLU(),
        "third": nn.Linear(64, 2),
    }
    return nn.Sequential(OrderedDict(layers))


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.003)


def _watched(*techniques: Callback, epochs: int = _EPOCHS) -> tuple[dict[str, list[tuple[int, float]]], Validated]:
    """Returns what a fit that learns forty points by heart has logged."""
    curves = Curves()
    module = Validated(_network(), cross_entropy, cross_entropy, _adam)
    places, labels = moons(40, seed=2)
    flipped = torch.where(torch.arange(40) % 10 == 0, 1 - labels, labels)  # a tenth of the labels are wrong
    batches = list(zip(places.split(10), flipped.split(10), strict=True))
    fit(module, batches, *techniques, epochs=epochs, validation=[moons(400, seed=3)], logger=curves)
    return curves.points, module


@draws("watches", Place.RUN)
def charts(kind: Kind, figure: Figure) -> str:
    """The first two charts that a class declares, of a small fit."""
    often = {"every_n_steps": 1} if "every_n_steps" in inspect.signature(kind).parameters else {}
    points, _ = _watched(usual(kind, **often))
    drawn = [
        (chart, [tag for tag in points if re.match(chart.tags, tag)])
        for chart in kind.charts
        if any(re.match(chart.tags, tag) for tag in points)
    ][:2]
    if not drawn:
        raise LookupError(f"{kind.__name__} has logged nothing that its charts show: draw it by a function of its own")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for panel, (chart, tags) in zip(axes, drawn, strict=True):
        for tag in tags[:4]:
            panel.plot(
                *zip(*points[tag], strict=True),
                label=tag.rpartition("/")[0].rpartition("/")[2].removeprefix("network."),
            )
        panel.set(title=chart.title, xlabel="step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return "What it draws of a small network, a line for each layer, while that learns forty points by heart."


@draws(GradientMonitor)
def lengths(kind: Kind, figure: Figure) -> str:
    """Lengths of gradients before and after clipping."""
    points, _ = _watched(GradientClipping(max_norm=0.5), kind(every_n_steps=1))
    axes = figure.subplots()
    for tag in sorted(tag for tag in points if re.fullmatch(r"grad(ient)?s?/(norm\w*|\w*clipped\w*)", tag))[:3]:
        axes.plot(*zip(*points[tag], strict=True), label=tag)
    axes.set(xlabel="step", yscale="log")
    axes.legend(fontsize="small")
    return "Lengths of the gradients of a small network whose gradients are clipped at 0.5, before and after."


@draws(GeneralizationGap)
def gap(kind: Kind, figure: Figure) -> str:
    """Training and validation loss, measured alike."""
    technique = kind(verbose=False)
    _watched(technique)
    curves = technique.curves
    axes = figure.subplots()
    name = next(name for name in curves.validation if "loss" in name)
    train, validation = curves.train[name], curves.validation[name]
    axes.plot(curves.epochs, train, label="training data")
    axes.plot(curves.epochs, validation, label="validation data")
    axes.fill_between(curves.epochs, train, validation, alpha=0.12, color=figures.COLORS[1])
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(fontsize="small")
    return "The loss of a network that learns forty points by heart, a tenth of them mislabeled, and the gap between."


@draws(BestWeightsEarlyStopping)
def stopped(kind: Kind, figure: Figure) -> str:
    """A validation loss, the best epoch, and the last."""
    technique = kind("val/loss", patience=8)
    points, _ = _watched(technique, epochs=60)
    axes = figure.subplots()
    whole, _ = _watched(epochs=60)
    losses = [value for _, value in whole["val/loss"]]
    seen = len(points["val/loss"])
    axes.plot(range(len(losses)), losses, **FAINT, linestyle=":", label="without it")
    axes.plot(range(seen), losses[:seen], label="validation loss")
    axes.plot(technique.best_epoch, losses[technique.best_epoch], "o", label="weights that are put back")
    axes.axvline(seen - 1, linestyle="--", linewidth=1, color=figures.COLORS[3], label="stops here")
    axes.set(xlabel="epoch", ylim=(None, 1.15 * max(losses[: seen + 8])))
    axes.legend(fontsize="small")
    return (
        f"A validation loss that is lowest after epoch {technique.best_epoch}: training stops when eight epochs have "
        "not been better, and that epoch's weights are put back."
    )


@draws(TemperatureScaling)
def temperature(kind: Kind, figure: Figure) -> str:
    """The loss over the temperature, and how confident predictions are beside how often they are right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2000,), generator=generator)
    logits = 5 * (0.8 * F.one_hot(labels, 4) + 0.75 * torch.randn(2000, 4, generator=generator))
    best = best_temperature(logits, labels)
    left, right = figure.subplots(1, 2)
    temperatures = torch.logspace(-0.2, 1.3, 60).tolist()
    left.plot(temperatures, [scaled_loss(logits, labels, value) for value in temperatures])
    left.plot(best, scaled_loss(logits, labels, best), "o", label=f"T = {best:.2f}")
    left.set(xscale="log", xlabel="temperature", title="validation loss")
    left.legend(fontsize="small")
    for value, label in ((1.0, "before"), (best, "after")):
        count, confidence, hits = reliability((logits / value).softmax(1), labels, bins=8)
        full = count > 20
        right.plot(confidence[full] / count[full], hits[full] / count[full], "o-", label=label, markersize=3)
    right.plot([0.2, 1], [0.2, 1], **FAINT, linestyle=":")
    right.set(xlabel="confidence", title="share that is right")
    right.legend(fontsize="small")
    return "Logits that are too sure of themselves, and divided by the temperature that validation data ask for."


@draws(WeightDistribution)
def distributions(kind: Kind, figure: Figure) -> str:
    """A layer's weights at first and at last, counted as the monitor does, and a curve that it logs."""
    points, module = _watched(kind(every_n_steps=1))
    left, right = figure.subplots(1, 2)
    low, high, bins = torch.tensor(-0.6), torch.tensor(0.6), 40
    edges = torch.linspace(-0.6, 0.6, bins + 1)
    for network, label in ((_network(), "at first"), (module.network, "trained")):
        counts = linear_histogram(network.second.weight.detach().flatten(), low, high, bins)
        left.stairs(counts, edges, label=label, fill=label == "at first", alpha=0.5 if label == "at first" else 1)
    left.set(xlabel="weight", title="histogram of a layer")
    left.legend(fontsize="small")
    for tag in [tag for tag in points if re.fullmatch(r"weight/.*weight/norm", tag)]:
        right.plot(*zip(*points[tag], strict=True), label=tag.split("/")[1].removeprefix("network."))
    right.set(xlabel="step", title="norm")
    right.legend(fontsize="x-small")
    return "What it writes of a small network: a histogram of a layer's weights, and the norm of every layer's."


@draws(BatchImages)
def logged(kind: Kind, figure: Figure) -> str:
    """Mixed samples with the targets that they are trained on."""
    mixed(BatchMixing, figure, ("Mixup", "CutMix"))
    return "Samples of a batch as a network is given them, after mixing, with what they are trained to be."
