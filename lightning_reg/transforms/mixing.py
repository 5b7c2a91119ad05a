"""Base class of transforms that mix the samples of a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_reg.functional.batch.mixing import mix_with_previous, soft_targets
from lightning_reg.settings import SettingError, check_count

__all__ = ["Draw", "Mixing", "on_device", "spatial_size"]


@dataclass(frozen=True)
class Draw:
    """A transform's draw for one batch, by which inputs and targets are changed alike.

    Attributes:
        change: Function from the inputs to the mixed ones, a new tensor.
        minor_weight: Weight of each sample's partner in its target, at most 0.5: a scalar or (N,), on the inputs'
            device. None where targets stay as they are.
        pastes: Whether ``change`` pastes parts of images, into targets that are maps of their pixels as well.
    """

    change: Callable[[Tensor], Tensor]
    minor_weight: Tensor | None = None
    pastes: bool = False

    def targets(self, targets: Tensor) -> Tensor:
        """Returns the mixed targets of whole samples.

        Args:
            targets: (N, ...), of a floating dtype.
        """
        return targets if self.minor_weight is None else mix_with_previous(targets, self.minor_weight)


class Mixing(ABC):
    """A mixing transform: it makes a draw for a batch, and is a function of the batch and the draw.

    Every sample's partner is the one before it in the batch, the first one's the last.
    """

    needs_partner: ClassVar[bool] = True
    """Whether samples are mixed with a partner, so that a batch of one stays as it is."""
    input_kind: ClassVar[Literal["any", "images", "rows"]] = "any"
    """Inputs that can be mixed: anything, images (N, C, H, W), or rows of a table (N, D)."""
    pastes: ClassVar[bool] = False
    """Whether each of its draws pastes parts of images."""

    @abstractmethod
    def draw(self, inputs: Tensor, *, stream: Random) -> Draw | None:
        """Makes the draw for one batch.

        Args:
            inputs: (N, ...), at least two samples where there are partners.
            stream: Source of random numbers.

        Returns:
            The draw, or None where the batch stays as it is.

        Raises:
            SettingError: If the inputs' shape can't be mixed.
        """

    def drawn(self, inputs: Tensor, *, stream: Random) -> Draw | None:
        """Makes the draw for a batch of any size; a single sample has no partner and stays as it is.

        Args:
            inputs: (N, ...), of a floating dtype.
            stream: Source of random numbers.

        Raises:
            SettingError: If the inputs can't be mixed.
        """
        if not inputs.is_floating_point() or not inputs.ndim:
            raise SettingError(
                f"inputs must be of a floating dtype and have a dimension of samples to be mixed, but are "
                f"{inputs.dtype} of shape {tuple(inputs.shape)}"
            )
        if len(inputs) < (2 if self.needs_partner else 1):
            return None
        return self.draw(inputs, stream=stream)

    def pastes_into(self, targets: Tensor, inputs: Tensor, draw: Draw | None = None) -> bool:
        """Whether targets are maps of the inputs' pixels, into which the same parts are pasted as into the inputs.

        Args:
            targets: (N, ...).
            inputs: (N, ...).
            draw: The draw for this batch; where None, whether it is so for every draw.

        Raises:
            SettingError: If the targets are maps of another size.
        """
        if not (self.pastes if draw is None else draw.pastes) or targets.ndim < 3:
            return False
        if targets.shape[-2:] == inputs.shape[-2:]:
            return True
        if targets.ndim > 3 and targets.shape[-2:].numel() > 1:
            raise SettingError(
                f"mix must be Mixup or erase where targets are maps of another size than the inputs, as those of shape "
                f"{tuple(targets.shape)} for {tuple(inputs.shape)}, into which CutMix can't paste the same boxes"
            )
        return False

    def __call__(
        self, inputs: Tensor, targets: Tensor, *, stream: Random | None = None, num_classes: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the mixed inputs and targets; neither argument is changed.

        Args:
            inputs: (N, ...), of a floating dtype.
            targets: (N, ...), of a floating dtype, or class indices (N,) or one-hot integers (N, C) where
                ``num_classes`` is given or targets stay as they are; for CutMix also maps (N, ..., H, W) of any dtype.
            stream: Source of random numbers; None for one seeded from torch's global stream.
            num_classes: Number of classes C, to convert class indices to probabilities (N, C); None for other targets.

        Raises:
            SettingError: If the inputs or the targets can't be mixed.
        """
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            kinds = f"{type(inputs).__name__} and {type(targets).__name__}"
            raise SettingError(f"inputs and targets must be tensors to be mixed, but are {kinds}")
        is_map = self.pastes_into(targets, inputs)
        if num_classes is not None:
            check_count("num_classes", num_classes)
        if num_classes is not None and self.needs_partner and not is_map:
            targets = soft_targets(targets, num_classes)
        self._check_targets(inputs, targets, is_map=is_map)
        if stream is None:
            stream = Random(int(torch.empty((), dtype=torch.int64).random_()))
        draw = self.drawn(inputs, stream=stream)
        if draw is None:
            return inputs, targets
        change = draw.change if self.pastes_into(targets, inputs, draw) else draw.targets
        return draw.change(inputs), change(targets)

    def _check_targets(self, inputs: Tensor, targets: Tensor, *, is_map: bool) -> None:
        if inputs.ndim and (not targets.ndim or len(targets) != len(inputs)):
            raise SettingError(
                f"targets must be as many as inputs, {len(inputs)}, but have the shape {tuple(targets.shape)}"
            )
        if self.needs_partner and not is_map and not (targets.is_floating_point() or targets.is_complex()):
            raise SettingError(
                f"targets must be of a floating dtype to be mixed, but are {targets.dtype}; of class indices "
                "num_classes makes probabilities"
            )

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({settings})"


def on_device(values: Sequence[float], inputs: Tensor) -> Tensor:
    """Returns numbers on the device of the inputs, by one asynchronous transfer.

    Args:
        values: One number per sample, or a single one.
        inputs: Tensor that the device is taken from.
    """
    return torch.tensor(values).to(inputs.device, non_blocking=True)


def spatial_size(inputs: Tensor, technique: str) -> tuple[int, int]:
    """Returns height and width of images.

    Args:
        inputs: (N, ..., H, W), at least four dimensions.
        technique: Name of the transform, for the error message.

    Raises:
        SettingError: If there are fewer dimensions.
    """
    if inputs.ndim < 4:
        raise SettingError(
            f"inputs must be images (N, C, H, W) for {technique}, but have the shape {tuple(inputs.shape)}"
        )
    return inputs.shape[-2], inputs.shape[-1]
