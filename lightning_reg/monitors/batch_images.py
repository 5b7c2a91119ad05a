"""An image of the first training batch, as the network sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_reg.core.batches import Key, check_key, is_dense, part_of
from lightning_reg.core.facts import Place
from lightning_reg.core.lightning import callbacks_of
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.core.tensorboard import log_image, takes_images
from lightning_reg.monitors.image_grid import captioned_grid
from lightning_reg.settings import SettingError, check_count

__all__ = ["BatchImages"]


class BatchImages(Technique):
    """Writes the first training batch to TensorBoard, after augmentation and mixing, with its labels.

    What it does: it takes the batch as the training step gets it, and writes a grid of images with captions. A soft
    label's two largest parts are named with their weights. Images are shown with the colors they had before
    normalization where the data module gives its constants (``mean_and_std``, as ``ImageData`` does), else stretched
    from the batch's smallest value to its largest. Rows of features are shown as strips, and maps of labels not at all.

    When to use: always, with images. Most mistakes of a data pipeline are seen at a glance: wrong labels, lost colors,
    augmentation that destroys what should be learned. When not: where inputs aren't numbers.

    Cost: one transfer of the images that are shown, and some ten milliseconds of drawing on rank 0, in the steps that
    are shown; nothing in others. No state.

    Logs: ``batch/training``, to TensorBoard, Weights & Biases and MLflow. It changes nothing.

    Args:
        every_n_epochs: Epochs between images, at least 1; only the fit's first batch is written where None.
        max_samples: Largest number of images that are shown, at least 1.
        input_key: Place of the images in a batch: an index, a name, or a getter and a setter.
        target_key: Place of the labels, likewise. A batch that is one tensor has no labels.
        class_names: Names of the classes, by index; where None, the data module's ``classes``, or numbers where it has
            none.

    Raises:
        SettingError: If a number is out of its range, or the batch has no entry for a key.

    >>> BatchImages(every_n_epochs=10).max_samples
    24
    """

    place = Place.RUN
    only_watches = True  # the audit leaves out what changes nothing

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        max_samples: int = 24,
        input_key: Key = 0,
        target_key: Key = 1,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if every_n_epochs is not None:
            check_count("every_n_epochs", every_n_epochs)
        check_count("max_samples", max_samples)
        check_key("input_key", input_key)
        check_key("target_key", target_key)
        self.every_n_epochs = every_n_epochs
        self.max_samples = max_samples
        self.input_key = input_key
        self.target_key = target_key
        self.class_names = class_names

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return BatchImagesSession(self, run)


@dataclass(eq=False)
class BatchImagesSession(Session[BatchImages]):
    """One fit, with the epoch of the latest batch."""

    epoch_seen: int | None = None
    has_said: bool = False  # that there is nothing to draw

    def __post_init__(self) -> None:
        if any(takes_images(logger) for logger in self.run.trainer.loggers):
            self.run.around_step("training_step", self._step, innermost=True)
        else:
            rank_zero_info("BatchImages has no logger that takes images, and draws none")

    def _step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_due():
            with torch._C.DisableTorchFunction():  # mixing, which follows the labels, isn't to follow what is drawn
                self._write(args[0] if args else next(iter(kwargs.values())))
        return training_step(*args, **kwargs)

    def _is_due(self) -> bool:
        epoch, before, every = self.run.trainer.current_epoch, self.epoch_seen, self.technique.every_n_epochs
        self.epoch_seen = epoch
        if before is None:
            return True
        return epoch != before and every is not None and epoch % every == 0

    def _say(self, why: str) -> None:
        """Warns once why there is nothing to draw."""
        if not self.has_said:
            rank_zero_warn(
                f"BatchImages draws nothing: {why}; input_key and target_key say where images and their labels are"
            )
        self.has_said = True

    @torch.no_grad()
    def _write(self, batch: Any) -> None:
        technique, trainer = self.technique, self.run.trainer
        if not trainer.is_global_zero:
            return
        if isinstance(technique.input_key, int) and not isinstance(batch, (Tensor, Mapping, Sequence)):
            self._say(f"batches are {type(batch).__name__}, in which nothing has a number")
            return
        inputs = batch if isinstance(batch, Tensor) else part_of(batch, technique.input_key, name="input_key")
        if not is_dense(inputs):
            self._say(f"batches have inputs of layout {inputs.layout}")
            return
        captions: list[list[str]] = [[] for _ in inputs[: technique.max_samples]]
        data = getattr(trainer, "datamodule", None)
        if not isinstance(batch, Tensor):
            targets = part_of(batch, technique.target_key, name="target_key").detach()
            if len(targets) != len(inputs):
                self._say(f"batches have {len(inputs)} inputs and {len(targets)} targets, as those of graphs")
                return
            names = technique.class_names or getattr(data, "classes", None) or ()
            captions = _captions(targets, _minor_weights(trainer, len(targets)), names, technique.max_samples)
        images = _shown(inputs.detach()[: technique.max_samples], getattr(data, "mean_and_std", None))
        grid = torch.from_numpy(np.array(captioned_grid(images, captions)))
        log_image(trainer, "batch/training", grid, trainer.global_step)


def _minor_weights(trainer: Trainer, count: int) -> Tensor | None:
    """Returns each sample's weight of the one before it, if a callback mixes and leaves dominant labels in place."""
    for callback in callbacks_of(trainer):
        weights = getattr(getattr(callback, "current", None), "minor_weight", None)
        if isinstance(weights, Tensor):
            return weights.detach().float().cpu().expand(count)
    return None


def _captions(targets: Tensor, minor: Tensor | None, names: Sequence[str], most: int) -> list[list[str]]:
    def named(index: int) -> str:
        return names[index] if 0 <= index < len(names) else str(index)

    if targets.ndim > 2:  # no one label is that of a map
        return [[] for _ in targets[:most]]
    if targets.is_floating_point() or _are_several(targets):
        rows = targets.float().flatten(1).cpu()[:most] if targets.ndim > 1 else targets.float().cpu()[:most, None]
        if rows.shape[1] == 1:  # regression
            return [[f"{value:.4g}"] for value in rows[:, 0].tolist()]
        weights, classes = rows.topk(2)
        return [
            [f"{weight:.2f} {named(label)}" for weight, label in zip(*row, strict=True) if weight > 0]
            for row in zip(weights.tolist(), classes.tolist(), strict=True)
        ]
    labels = targets.flatten(1)[:, 0].cpu() if targets.ndim > 1 else targets.cpu()
    pairs = list(zip(labels.tolist(), labels.roll(1).tolist(), strict=True))[:most]
    if minor is None:
        return [[named(label)] for label, _ in pairs]
    shares = minor.tolist()[:most]
    return [
        [f"{1 - share:.2f} {named(label)}", f"{share:.2f} {named(partner)}"]
        for (label, partner), share in zip(pairs, shares, strict=True)
    ]


def _are_several(targets: Tensor) -> bool:
    """Whether targets are multi-label: several zeros or ones per sample."""
    return targets.ndim == 2 and targets.shape[1] > 1 and bool(((targets == 0) | (targets == 1)).all())


def _shown(inputs: Tensor, constants: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turns a network's inputs into images in [0, 1], on the host."""
    if not 2 <= inputs.ndim <= 4 or not inputs.numel():
        raise SettingError(
            f"input_key must give images (N, C, H, W), sequences (N, T, F) or features (N, F), but those are "
            f"{tuple(inputs.shape)}"
        )
    images = inputs.float().cpu()
    images = images.view(len(images), *[1] * (4 - images.ndim), *images.shape[1:])
    if constants is not None and constants[0].shape == images.shape[1:2] and inputs.ndim == 4:
        mean, std = (values.detach().float().cpu().view(-1, 1, 1) for values in constants)
        images = images * std + mean
    else:
        low, high = images.nan_to_num().aminmax()
        images = (images - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True)
    return images.nan_to_num(0, 1, 0).clamp(0, 1)
