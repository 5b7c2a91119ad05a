"""What layers return, and which weights they use."""

from collections.abc import Callable, Sequence
from typing import Any

import figures
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_reg.callbacks import (
    DropoutSchedule,
    EmbeddingNoise,
    FreezeBatchNorm,
    InsertDropConnect,
    InsertDropout,
    InsertLayerDrop,
    InsertStochasticDepth,
    InsertTokenDropout,
    ManifoldMixup,
    Mixout,
    ReplaceNorm,
    SpectralNormalization,
    StrengthSchedule,
    WeightStandardization,
)
from lightning_reg.core.facts import Place
from lightning_reg.core.technique import Technique
from lightning_reg.functional.batch.mixing import mix_with_previous
from lightning_reg.functional.forward.dropout import mixout
from lightning_reg.functional.forward.token_noise import embedding_noise
from lightning_reg.nn import DropConnect, TokenDropout
from lightning_reg.nn.factories import make_norm
from plots.registry import Kind, draws, usual
from plots.scenes import AMOUNTS, BETWEEN, FAINT, SIGNED, Module, Validated, digits, fit, image, in_a_row


class _Maps(nn.Module):
    """Three equal feature maps of an image, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 3, 1, bias=False)
        nn.init.ones_(self.maps.weight)
        self.head = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        self.returned = self.maps(images)
        return self.head(self.returned.mean((2, 3)))


def _maps(*techniques: Technique) -> Tensor:
    """Returns what the chosen layer returned in a training step, (C, H, W)."""
    torch.manual_seed(0)
    images, labels = digits()
    network = _Maps()
    fit(Module(network, _loss), [(images[:8].repeat_interleave(2, 2).repeat_interleave(2, 3), labels[:8])], *techniques)
    return network.returned[3].detach()


def _loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


@draws(Place.FORWARD)
def maps(kind: Kind, figure: Figure) -> str:
    """Three maps that a layer returns, with a technique and without."""
    return _rows(figure, [("without", _maps()), ("with", _maps(usual(kind, include=("network.maps",))))])


def _rows(figure: Figure, rows: Sequence[tuple[str, Tensor]]) -> str:
    axes = figure.subplots(len(rows), 3, squeeze=False)
    top = max(values.max().item() for _, values in rows)
    for row, (title, values) in zip(axes, rows, strict=True):
        for panel, values_of in zip(row, values, strict=True):
            image(panel, values_of, cmap=AMOUNTS, high=top)
        row[0].set_ylabel(title)
    return "Three feature maps of one image, which are alike, as the layer behind sees them in a training step."


@draws(InsertDropout)
def kinds_of_dropout(kind: Kind, figure: Figure) -> str:
    """Maps under each kind of dropout."""
    rows = [
        (name, _maps(kind(p=0.4, kind=name, include=("network.maps",)))) for name in ("standard", "spatial", "gaussian")
    ]
    figure.set_size_inches(4.8, 3.4)
    _rows(figure, rows)
    return "Three feature maps, which are alike, in a training step under each kind of noise, at a rate of 0.4."


class _Blocks(nn.Module):
    """Residual blocks, each of which adds 1 at a place of its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(index) for index in range(count))
        self.head = nn.Linear(count, 2)
        self.returned: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = block(inputs)
        self.returned.append(inputs.detach())
        return self.head(inputs)


class _Block(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.weight * nn.functional.one_hot(torch.tensor(self.index), inputs.shape[1])


@draws(InsertLayerDrop, InsertStochasticDepth)
def blocks(kind: Kind, figure: Figure) -> str:
    """Which of twelve residual blocks act on which samples of four batches."""
    torch.manual_seed(0)
    network, rate = _Blocks(12), 0.4
    batch = (torch.zeros(8, 12), torch.zeros(8, dtype=torch.long))
    fit(Module(network, _loss), [batch] * 4, kind(p=rate, include=("network.blocks.*",)))
    acted = torch.cat(network.returned).T.ne(0).float()
    axes = figure.subplots()
    axes.imshow(acted, cmap=AMOUNTS, vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="lower")
    for border in (8, 16, 24):
        axes.axvline(border - 0.5, color=figures.INK, linewidth=1)
    axes.set(xlabel="samples of four batches", ylabel="block", xticks=[], yticks=[0, 5, 11], yticklabels=[1, 6, 12])
    return f"Which of twelve residual blocks act on which sample, at p = {rate}: {int(acted.sum())} of {acted.numel()}."


@draws(InsertTokenDropout)
def tokens(kind: Kind, figure: Figure) -> str:
    """The patches of an image that are kept in three steps."""
    torch.manual_seed(0)
    layer = TokenDropout(0.5)
    axes = in_a_row(figure, 4)
    picture = digits()[0][3, 0]
    image(axes[0], picture, "64 tokens", cmap=AMOUNTS)
    for panel in axes[1:]:
        kept = layer.kept(picture.view(1, 64, 1))[0]
        shown = torch.full((64,), torch.nan)
        shown[kept] = picture.flatten()[kept]
        image(panel, shown.view(8, 8), f"{len(kept)} are kept", cmap=AMOUNTS)
    return "An image of 64 tokens, and those that what comes behind computes with in three training steps, at p = 0.5."


@draws(EmbeddingNoise)
def embeddings(kind: Kind, figure: Figure) -> str:
    """Two entries of embeddings, and draws of them."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(12, 2, generator=generator)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, alpha in zip(axes, (5.0, 15.0), strict=True):
        wide = torch.zeros(12, 64)
        wide[:, :2] = clean
        for _ in range(40):
            noisy = embedding_noise(wide, torch.rand(wide.shape, generator=generator), alpha)
            panel.plot(*noisy[:, :2].T, ".", color=figures.COLORS[0], markersize=2, alpha=0.35)
        panel.plot(*clean.T, ".", color=figures.COLORS[1])
        panel.set(title=f"α = {alpha:g}", xlabel="first entry")
    axes[0].set_ylabel("second entry")
    return "Two entries of the embeddings of twelve tokens, each 64 wide, and forty draws of what is trained with."


def _weights_in_use(figure: Figure, drawn: Callable[[Tensor], Tensor], weight: Tensor, titles: Sequence[str]) -> None:
    axes = in_a_row(figure, 4)
    image(axes[0], weight, titles[0], cmap=SIGNED, low=-2, high=2)
    for panel, title in zip(axes[1:], titles[1:], strict=True):
        image(panel, drawn(weight), title, cmap=SIGNED, low=-2, high=2)


@draws(InsertDropConnect)
def dropped_weights(kind: Kind, figure: Figure) -> str:
    """A layer's weights as three steps use them."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    from lightning_reg.nn.layers.drop_connect import drop_connected

    dropped: DropConnect = drop_connected(layer, 0.4)
    _weights_in_use(
        figure,
        lambda weight: dropped.dropped(weight).detach(),
        torch.randn(8, 8),
        ("weights", "a step", "another", "a third"),
    )
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


@draws(DropoutSchedule)
def schedules(kind: Kind, figure: Figure) -> str:
    """The rate over epochs."""
    axes = figure.subplots()
    epochs = range(51)
    for label, schedule in {
        "rising (a curriculum)": StrengthSchedule(kind="linear"),
        "falling (annealing)": StrengthSchedule(kind="cosine", start=1.0, end=0.0),
        "early dropout": StrengthSchedule(kind="constant", start=1.0, end=0.0, begin=15),
    }.items():
        axes.plot(epochs, [0.5 * schedule.factor(epoch, 50) for epoch in epochs], label=label)
    axes.set(xlabel="epoch", ylabel="rate of a layer that has 0.5")
    axes.legend(fontsize="small")
    return "The rate of a dropout layer that was built with 0.5, over fifty epochs, under three schedules."


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
        module = Validated(network, lambda network, _, feed=feed: _loss(network, next(feed)), looked)
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
        fit(Module(network, _loss), [batch] * 3, *techniques)
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
    fit(Module(network, _loss), [batch], kind(include=("network.0",)))
    after = network[0].weight.detach().flatten(1)
    for panel, values, title in zip(axes, (before, after), ("weights", "weights in use"), strict=True):
        for unit, row in enumerate(values):
            panel.plot(row / values.std(), torch.full_like(row, unit), "|", color=figures.COLORS[0], alpha=0.7)
            panel.plot(row.mean() / values.std(), unit, "o", color=figures.COLORS[1], markersize=4)
        panel.set(title=title, xlabel="weight / deviation of all", yticks=range(6))
    axes[0].set_ylabel("filter")
    return "The 36 weights of each of six filters, and their means (dots): those in use have mean 0 and one deviation."


@draws(ManifoldMixup)
def hidden_mixed(kind: Kind, figure: Figure) -> str:
    """Hidden states of two classes, and mixed ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    states = torch.randn(40, 2, generator=generator) * 0.35 + (2 * labels.unsqueeze(1) - 1)
    from torch.distributions import Beta

    torch.manual_seed(0)
    minor = torch.minimum(share := Beta(1.0, 1.0).sample((40,)), 1 - share)
    mixed = mix_with_previous(states, minor)
    shares = mix_with_previous(labels.float(), minor)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, places, colors, title in (
        (axes[0], states, labels.float(), "hidden states"),
        (axes[1], mixed, shares, "mixed, with their targets"),
    ):
        panel.scatter(*places.T, c=colors, cmap=BETWEEN, vmin=0, vmax=1, s=18, edgecolors="none")
        panel.set(title=title, aspect="equal")
    return "What a layer returns for two classes, and what the layers behind it are trained on, colored by target."
