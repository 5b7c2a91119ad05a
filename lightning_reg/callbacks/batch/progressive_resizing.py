"""Training on images of growing size."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.memory import is_oom_error
from typing_extensions import override

from lightning_reg.core.batches import MISFITS, Key, check_key, dense_part_of, look_at, reason_of, with_parts
from lightning_reg.core.facts import Linear, Place
from lightning_reg.core.lightning import has_stand_in, logs_now, planned_epochs
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.functional.batch.resizing import progressive_sides, resized
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["ProgressiveResizing"]


class ProgressiveResizing(Technique):
    """Trains on small images first, and on larger ones from stage to stage.

    What it does: the training step gets the batch's images in the size of the current stage, from ``start`` times their
    sides to their full sides, in ``stages`` stages of equally many epochs. Validation and test use the full size, as
    does the last stage.

    When to use: to shorten training on images: half the side takes a fourth of the compute. Together with
    regularization that grows likewise, as in the paper, since small images need less: ``DropoutSchedule`` or any
    strength with ``StrengthSchedule(kind="linear")``, which the overlay shows. When not: where details of a few pixels
    decide; for networks that take only one size, whose last layer sees a flattened map; where masks of the images' size
    are predicted, which stay as they are, unless the training step resizes the network's outputs to them.

    Cost: one interpolation of the inputs; the rest of the step costs less. No state.

    Interacts with: Mixing and ``AdversarialTraining``, which see whichever size those see that were listed before them.
    Compiled networks are compiled once more for the first other size. Position embeddings have to be interpolated by
    the network.

    Deviates from the paper: the stages' strengths of augmentation, dropout and Mixup are schedules of their own.

    Args:
        start: Share of the sides in the first stage, in (0, 1]; 1 leaves images unchanged.
        stages: Number of sizes, at least 1, which leaves images unchanged, too.
        multiple_of: Number that sides are rounded to multiples of, at least 1: the network's stride or its patch size.
        input_key: Position of the images in a batch: an index, a name, or a getter and a setter.

    Logs:
        ``schedule/image_side``, the larger side of the images, at the steps the trainer logs.

    Raises:
        SettingError: If a setting is out of its range, training has no planned end, or nothing is trained; at the first
            batch, if it has no images (N, C, H, W) of a floating dtype, rounding leaves them their full size, or the
            network doesn't accept smaller ones.

    Reference:
        Mingxing Tan, Quoc V. Le: EfficientNetV2: Smaller Models and Faster Training, ICML 2021, arXiv:2104.00298.

    >>> ProgressiveResizing(start=0.5).stages
    4
    """

    place = Place.BATCH
    usual_ranges = (Linear("start", 0.4, 0.8),)

    def __init__(self, *, start: float = 0.5, stages: int = 4, multiple_of: int = 1, input_key: Key = 0) -> None:
        super().__init__()
        check_range("start", start, low=0, high=1, low_open=True)
        check_count("stages", stages)
        check_count("multiple_of", multiple_of)
        check_key("input_key", input_key)
        self.start = start
        self.stages = stages
        self.multiple_of = multiple_of
        self.input_key = input_key

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return ResizingSession(self, run)


@dataclass(eq=False)
class ResizingSession(Session[ProgressiveResizing]):
    """One fit of progressive resizing.

    Attributes:
        epochs: Number of planned epochs.
        resizes: Whether some stage has smaller images, as far as the first batch tells.
        is_checked: Whether the network has accepted smaller images.
    """

    epochs: float = field(init=False)
    resizes: bool = field(default=False, init=False)
    is_checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.epochs = planned_epochs(self.run.trainer)
        if math.isinf(self.epochs):
            raise SettingError(
                f"max_epochs, or max_steps beside data of a known length, must be given with "
                f"{type(self.technique).__name__}, whose stages share the training among them"
            )
        if self._acts and self.run.module.automatic_optimization and has_stand_in(self.run.trainer):
            raise SettingError(
                f"configure_optimizers must return an optimizer with {type(self.technique).__name__}, but returns "
                "None: what collects images rather than learns from them would get some of each size"
            )
        self.run.around_step("training_step", self._step)

    @property
    def _acts(self) -> bool:
        return self.technique.start < 1 and self.technique.stages > 1

    def _step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        technique = self.technique
        if not self._acts:
            return training_step(*args, **kwargs)
        batch = args[0] if args else kwargs["batch"]
        images = dense_part_of(batch, technique.input_key, name="input_key")
        if images.ndim != 4 or not images.is_floating_point():
            raise SettingError(
                f"input_key must lead to images (N, C, H, W) of a floating dtype, but {type(technique).__name__} finds "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        done = self.run.trainer.current_epoch / self.epochs
        full = (images.shape[2], images.shape[3])
        sides = self._sides(full, done)
        if not self.resizes and self._sides(full, 0.0) == full:  # in the first stage, which has the smallest
            raise SettingError(
                f"multiple_of must let the first stage have smaller images, but start={technique.start} of {full[0]} × "
                f"{full[1]}, rounded to multiples of {technique.multiple_of}, is the full size; lower either of them"
            )
        self.resizes = True
        if logs_now(self.run.trainer):
            self.run.log(f"schedule/image_side{technique.suffix(self.run.trainer)}", float(max(sides)))
        if sides == full:
            return training_step(*args, **kwargs)
        batch = with_parts(batch, [(technique.input_key, resized(images, sides))])
        try:
            output = training_step(batch, *args[1:], **kwargs) if args else training_step(**{**kwargs, "batch": batch})
        except MISFITS as error:
            if self.is_checked or isinstance(error, SettingError) or is_oom_error(error):
                raise
            maps: list[torch.Tensor] = []
            look_at(args[0] if args else kwargs["batch"], torch.Tensor, maps.append)
            if any(part is not images and part.ndim > 2 and part.shape[-2:] == images.shape[-2:] for part in maps):
                raise SettingError(
                    f"start must be 1 where a batch has maps of the images' size, such as masks, which "
                    f"{type(technique).__name__} leaves as they are, unless the training step resizes outputs to them: "
                    f"with images of {sides[0]} × {sides[1]} it fails with {reason_of(error)}"
                ) from error
            raise SettingError(
                "start must be 1 where the network takes images of one size alone, and multiple_of the factor by which "
                f"it shrinks them where it enlarges them again: it was trained on {full[0]} × {full[1]}, and of "
                f"{sides[0]} × {sides[1]} it fails with {reason_of(error)}"
            ) from error
        self.is_checked = True
        return output

    def _sides(self, full: tuple[int, int], done: float) -> tuple[int, int]:
        technique = self.technique
        return progressive_sides(
            full, done, start=technique.start, stages=technique.stages, multiple_of=technique.multiple_of
        )
