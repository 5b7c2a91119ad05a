"""What plots are drawn of: fits, by the Trainer, of networks so small that each takes a fraction of a second."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import figures
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

__all__ = [
    "AMOUNTS",
    "BETWEEN",
    "FAINT",
    "SIGNED",
    "Curves",
    "Module",
    "Validated",
    "cross_entropy",
    "digits",
    "fit",
    "image",
    "in_a_row",
    "moons",
]

# Maps of color that are see-through where there is nothing, so that they are read on light and on dark pages.
AMOUNTS = LinearSegmentedColormap.from_list("amounts", [(*to_rgba(figures.COLORS[0])[:3], 0.1), figures.COLORS[0]])
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [figures.COLORS[1], (*to_rgba(figures.COLORS[1])[:3], 0.0), figures.COLORS[0]]
)
BETWEEN = LinearSegmentedColormap.from_list("between", [figures.COLORS[1], "#9a9a9a", figures.COLORS[0]])
FAINT: dict[str, Any] = {"color": figures.INK, "alpha": 0.45, "linewidth": 1.0}


class Module(LightningModule):
    """A network, with the loss that a function computes of it and a batch.

    Args:
        network: Any.
        loss: Of the network and a batch.
        optimizer: Makes one of parameters; descent that stays where it is where None.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._loss, self._optimizer = loss, optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Returns the loss, and logs it."""
        loss = self._loss(self.network, batch)
        self.log("train/loss", loss, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Returns the optimizer."""
        if self._optimizer is not None:
            return self._optimizer(self.parameters())
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Validated(Module):
    """A network that a function looks at in validation.

    Args:
        network: Any.
        loss: Of the network and a batch.
        validate: Likewise; a tensor that it returns is logged as a loss.
        optimizer: Makes one of parameters; descent that stays where it is where None.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        validate: Callable[[nn.Module, Any], Tensor | None],
        optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    ) -> None:
        super().__init__(network, loss, optimizer)
        self._validate = validate

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Looks."""
        found = self._validate(self.network, batch)
        if found is not None:
            self.log("val/loss", found, batch_size=1)


class Curves(Logger):
    """Keeps scalars."""

    name, version = "curves", 0

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, list[tuple[int, float]]] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keeps none."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keeps each beside its step."""
        for tag, value in metrics.items():
            self.points.setdefault(tag, []).append((step or 0, float(value)))


def fit(
    module: LightningModule,
    batches: Sequence[Any],
    *callbacks: Callback,
    epochs: int = 1,
    validation: Sequence[Any] = (),
    logger: Logger | bool = False,
) -> Trainer:
    """Trains on batches as they are, in their order.

    Args:
        module: What is trained.
        batches: An epoch's.
        callbacks: Techniques, and what looks on.
        epochs: How many.
        validation: Batches of a validation after each epoch; there is none where empty.
        logger: What is told of every step.
    """
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    loaders = [DataLoader(list(part), batch_size=None) for part in (batches, validation)]
    trainer.fit(module, loaders[0], loaders[1] if validation else None)
    return trainer


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Returns scikit-learn's digits (N, 1, 8, 8) in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images).float().unsqueeze(1) / 16, torch.tensor(found.target)


def moons(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns points of two half moons (N, 2), and which of them each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    angles = torch.pi * (torch.rand(count, generator=generator) + labels)
    places = torch.stack((angles.cos() - 0.5 + labels, angles.sin() - 0.25 + 0.5 * labels), 1)
    return places + 0.18 * torch.randn(count, 2, generator=generator), labels


def image(axes: Axes, values: Tensor, title: str = "", *, cmap: Any = "gray", low: float = 0, high: float = 1) -> None:
    """Shows a matrix without axes."""
    axes.imshow(values.numpy(), cmap=cmap, vmin=low, vmax=high, interpolation="nearest", aspect="equal")
    axes.set(xticks=[], yticks=[], title=title)
    axes.title.set_fontsize("small")
    for spine in axes.spines.values():
        spine.set(visible=True, alpha=0.3)


def in_a_row(figure: Figure, count: int) -> Sequence[Axes]:
    """Returns axes for small images, in a figure that is no higher than they are."""
    figure.set_size_inches(4.8, 5.6 / count)
    axes: Sequence[Axes] = figure.subplots(1, count)
    return axes


def cross_entropy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the loss of a classifier."""
    return F.cross_entropy(network(batch[0]), batch[1])
