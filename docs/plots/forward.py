"""What layers return, and which of them run."""

from collections.abc import Sequence

import figures
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributions import Beta

from lightning_reg.callbacks import (
    DropoutSchedule,
    EmbeddingNoise,
    InsertDropout,
    InsertLayerDrop,
    InsertStochasticDepth,
    InsertTokenDropout,
    ManifoldMixup,
    StrengthSchedule,
)
from lightning_reg.core.facts import Place
from lightning_reg.core.technique import Technique
from lightning_reg.functional.batch.mixing import mix_with_previous
from lightning_reg.functional.forward.token_noise import embedding_noise
from lightning_reg.nn import TokenDropout
from plots.registry import Kind, draws, usual
from plots.scenes import AMOUNTS, BETWEEN, Module, cross_entropy, digits, fit, image, in_a_row


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
    fit(
        Module(network, cross_entropy),
        [(images[:8].repeat_interleave(2, 2).repeat_interleave(2, 3), labels[:8])],
        *techniques,
    )
    return network.returned[3].detach()


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
    fit(Module(network, cross_entropy), [batch] * 4, kind(p=rate, include=("network.blocks.*",)))
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


@draws(ManifoldMixup)
def hidden_mixed(kind: Kind, figure: Figure) -> str:
    """Hidden states of two classes, and mixed ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    states = torch.randn(40, 2, generator=generator) * 0.35 + (2 * labels.unsqueeze(1) - 1)
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
