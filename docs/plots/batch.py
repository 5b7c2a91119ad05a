"""What networks are handed."""

from collections.abc import Sequence
from random import Random

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_reg.callbacks import AugmentationConsistency, BatchMixing, ProgressiveResizing, RegMixup
from lightning_reg.core.facts import Place
from lightning_reg.core.technique import Technique
from lightning_reg.functional.batch.resizing import progressive_sides, resized
from lightning_reg.transforms import CutMix, Cutout, Mixup
from plots.registry import Kind, draws, usual
from plots.scenes import Module, cross_entropy, digits, fit, image, in_a_row

_COUNT = 5


class _Seeing(nn.Module):
    """A classifier that keeps what it was handed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 10)
        self.seen = torch.zeros(0)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images.detach().clone()
        return self.head(images.mean((1, 2, 3)).unsqueeze(1))


def _seen(*techniques: Technique) -> Tensor:
    torch.manual_seed(0)
    network = _Seeing()
    fit(Module(network, cross_entropy), [_first()], *techniques)
    return network.seen


def _first() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    return images[3 : 3 + _COUNT], labels[3 : 3 + _COUNT]


def _shown(figure: Figure, rows: dict[str, Tensor], captions: dict[str, list[str]] | None = None) -> None:
    figure.set_size_inches(4.8, 1.05 * len(rows) + 0.15)
    axes = figure.subplots(len(rows), _COUNT, squeeze=False)
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(title, fontsize="small")
        for panel, picture, caption in zip(row, images, (captions or {}).get(title, [""] * _COUNT), strict=False):
            image(panel, picture[0])
            panel.set_xlabel(caption, fontsize="x-small")


@draws(Place.BATCH)
def handed(kind: Kind, figure: Figure) -> str:
    """A batch as it is, and as the network is handed it."""
    _shown(figure, {"without": _seen(), "with": _seen(usual(kind))})
    return "The first samples of a batch as they are, and as the network is handed them."


@draws(BatchMixing)
def mixed(kind: Kind, figure: Figure, shown: Sequence[str] = ("batch", "Mixup", "CutMix", "Cutout")) -> str:
    """A batch under three transforms, with the targets that the loss is computed of."""
    images, labels = _first()
    rows, captions = {"batch": images}, {"batch": [str(label) for label in labels.tolist()]}
    for transform in (Mixup(alpha=2.0, per_sample=True), CutMix(), Cutout(size=4, value=0.5)):
        name = type(transform).__name__
        draw = transform.drawn(images, stream=Random(1))
        rows[name] = draw.change(images)
        minor = torch.zeros(_COUNT) if draw.minor_weight is None else draw.minor_weight.expand(_COUNT)
        captions[name] = [
            f"{label}" if not share else f"{label}: {1 - share:.0%}, {partner}: {share:.0%}"
            for label, partner, share in zip(labels.tolist(), labels.roll(1).tolist(), minor.tolist(), strict=True)
        ]
    _shown(figure, {name: rows[name] for name in shown}, captions)
    return (
        "A batch, and what transforms make of it, with the targets whose losses are mixed; partners stand on the left."
    )


@draws(RegMixup)
def beside(kind: Kind, figure: Figure) -> str:
    """The doubled batch."""
    seen = _seen(kind(alpha=10.0))
    _shown(figure, {"clean": seen[:_COUNT], "mixed": seen[_COUNT:]})
    return "The batch that one forward pass is given: clean samples, and the same mixed about half and half (α = 10)."


@draws(AugmentationConsistency)
def views(kind: Kind, figure: Figure) -> str:
    """The batch with its views."""
    seen = _seen(kind())
    _shown(figure, {"clean": seen[:_COUNT], "augmented": seen[_COUNT : 2 * _COUNT], "and again": seen[2 * _COUNT :]})
    return "The batch that one forward pass is given: each sample as it is, and two views of it, to be predicted alike."


@draws(ProgressiveResizing)
def stages(kind: Kind, figure: Figure) -> str:
    """A photograph-like image in each stage."""
    technique = kind(start=0.4)
    picture = digits()[0][3:4].repeat_interleave(4, 2).repeat_interleave(4, 3)
    axes = in_a_row(figure, technique.stages)
    for stage, panel in enumerate(axes):
        sides = progressive_sides((32, 32), (stage + 0.5) / technique.stages, start=0.4, stages=technique.stages)
        image(panel, resized(picture, sides)[0, 0], f"{sides[0]}×{sides[1]}")
        panel.set_xlabel(f"stage {stage + 1}")
    return "An image of 32×32 pixels as each stage of training sees it, from 0.4 of its size to all of it."
