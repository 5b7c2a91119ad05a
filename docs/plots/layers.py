"""Which weights layers use, and which statistics."""

from typing import Any

import figures
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_reg.callbacks import (
    FreezeBatchNorm,
    InsertDropConnect,
    Mixout,
    ReplaceNorm,
    SpectralNormalization,
    WeightStandardization,
)
from lightning_reg.functional.forward.dropout import mixout
from lightning_reg.nn.factories import make_norm
from lightning_reg.nn.layers.drop_connect import drop_connected
from plots.registry import Kind, draws
from plots.scenes import AMOUNTS, FAINT, SIGNED, Module, Validated, cross_entropy, fit, image, in_a_row


@draws(InsertDropConnect)
def dropped_weights(kind: Kind, figure: Figure) -> str:
    """A layer's weights as three steps use them."""
    torch.manual_seed(0)
    weight, layer = torch.randn(8, 8), drop_connected(nn.Linear(8, 8), 0.4)
    axes = in_a_row(figure, 4)
    image(axes[0], weight, "weights", cmap=SIGNED, low=-2, high=2)
    for panel, title in zip(axes[1:], ("a step", "another", "a third"), strict=True):
        image(panel, layer.dropped(weight).detach(), title, cmap=SIGNED, low=-2, high=2)
    return "The weights of a layer, and as three training steps use them at p = 0.4: what is kept is divided by 0.6."


@draws(Mixout)
def mixed_out(kind: Kind, figure: Figure) -> str:
    """A layer's trained weights, its first ones, and as two steps use them."""
    torch.manual_seed(0)
    start = torch.randn(8, 8)
    trained = start + 0.9 * torch.randn(8, 8)
    axes = in_a_row(figure, 4)
    panels = {
        "pretrained": start,
        "trained": trained,
        "a step": mixout(trained, start, 0.7),
        "another": mixout(trained, start, 0.7),
    }
    for panel, (title, values) in zip(axes, panels.items(), strict=True):
        image(panel, values, title, cmap=SIGNED, low=-2.5, high=2.5)
    return "Weights of a layer, and as two training steps use them at p = 0.7: seven of ten are the pretrained ones."


@draws(FreezeBatchNorm)
def frozen(kind: Kind, figure: Figure) -> str:
    """A running mean while batches of other data come."""
    axes = figure.subplots()
    for techniques, label in (((), "trained"), ((kind(),), "frozen")):
        torch.manual_seed(0)
        network = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
        means: list[float] = []

        def looked(network: nn.Module, batch: Any, means: list[float] = means) -> None:
            means.append(network[0].running_mean.item())  # type: ignore[index, union-attr, operator]

        generator = torch.Generator().manual_seed(0)
        batches = [(1.5 + torch.randn(4, 1, generator=generator), torch.zeros(4, dtype=torch.long)) for _ in range(60)]
        feed = iter(batches)
        module = Validated(network, lambda network, _, feed=feed: cross_entropy(network, next(feed)), looked)
        fit(module, batches[:1], *techniques, epochs=60, validation=batches[:1])
        axes.plot(means, label=label)
    axes.set(xlabel="step", ylabel="running mean")
    axes.legend(fontsize="small")
    return "The running mean of a BatchNorm layer that is fine-tuned with batches of four samples from other data."


@draws(ReplaceNorm)
def statistics(kind: Kind, figure: Figure) -> str:
    """Which activations share their mean and deviation with one of them."""
    axes = figure.subplots(1, 4)
    for panel, norm in zip(axes, ("batch", "group", "layer", "ghost_batch"), strict=True):
        torch.manual_seed(0)
        layer = make_norm(norm, 32, spatial_dims=2).train()
        inputs = torch.randn(64, 32, 2, 2, requires_grad=True)
        layer(inputs)[5, 7, 0, 0].backward()
        image(panel, inputs.grad.abs().sum((2, 3)).gt(1e-7).float(), norm.replace("_", " "), cmap=AMOUNTS)
        panel.plot(7, 5, ".", color=figures.COLORS[1])
        panel.set(xlabel="channels")
    axes[0].set_ylabel("samples")
    return "The activations whose mean and deviation one of them (dot) is normalized by, in a batch of 64 samples."


@draws(SpectralNormalization)
def singular_values(kind: Kind, figure: Figure) -> str:
    """Singular values of a layer, before and after."""
    axes = figure.subplots()
    for techniques, label, style in (((), "as initialized", "--"), ((kind(n_power_iterations=10),), "normalized", "-")):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 2))
        nn.init.normal_(network[0].weight, std=0.3)
        batch = (torch.randn(4, 64), torch.zeros(4, dtype=torch.long))
        fit(Module(network, cross_entropy), [batch] * 3, *techniques)
        axes.plot(range(1, 33), torch.linalg.svdvals(network[0].weight.detach()), style, label=label)
    axes.axhline(1, **FAINT, linestyle=":")
    axes.set(xlabel="singular value, by size", ylim=(0, None))
    axes.legend(fontsize="small")
    return "How much a layer of 64 inputs can stretch, direction by direction: the weights in use stretch by at most 1."


@draws(WeightStandardization)
def standardized(kind: Kind, figure: Figure) -> str:
    """Weights of filters, before and after."""
    axes = figure.subplots(1, 2, sharey=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(216, 2))
    with torch.no_grad():
        network[0].weight.mul_(torch.rand(6, 1, 1, 1) * 4 + 0.3).add_(0.4 * torch.randn(6, 1, 1, 1))
    before = network[0].weight.detach().flatten(1).clone()
    batch = (torch.randn(4, 4, 8, 8), torch.zeros(4, dtype=torch.long))
    fit(Module(network, cross_entropy), [batch], kind(include=("network.0",)))
    after = network[0].weight.detach().flatten(1)
    for panel, values, title in zip(axes, (before, after), ("weights", "weights in use"), strict=True):
        for unit, row in enumerate(values):
            panel.plot(row / values.std(), torch.full_like(row, unit), "|", color=figures.COLORS[0], alpha=0.7)
            panel.plot(row.mean() / values.std(), unit, "o", color=figures.COLORS[1], markersize=4)
        panel.set(title=title, xlabel="weight / deviation of all", yticks=range(6))
    axes[0].set_ylabel("filter")
    return "The 36 weights of each of six filters, and their means (dots): those in use have mean 0 and one deviation."
