"""Consistent predictions for several augmented views of each sample."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.callbacks.batch.copies_mean import CopiesMean
from lightning_reg.callbacks.batch.reg_mixup import RegMixup
from lightning_reg.callbacks.loss.logits import LogitsSession, copies_of
from lightning_reg.callbacks.loss.loss_term import LossTerm
from lightning_reg.callbacks.loss.r_drop import RDrop
from lightning_reg.core.batches import Key, check_key, dense_part_of, repeated, step_with_repeated, with_parts
from lightning_reg.core.checkpointing import refuse_checkpointed, will_have_gradients
from lightning_reg.core.facts import Log
from lightning_reg.core.lightning import callbacks_of, instance_number, refuse_compiled_whole
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.streams import base_seed, check_seed, random_stream
from lightning_reg.functional.loss.output_penalties import jensen_shannon_divergence
from lightning_reg.settings import SettingError, check_choice, check_count, check_range
from lightning_reg.transforms import (
    AdvancedAugmentation,
    Augmentation,
    BasicAugmentation,
    PerSampleAugmentation,
    preset,
)

__all__ = ["AugmentationConsistency"]

LossOf = Literal["clean", "all"]
_ROUNDING = 1 / 510  # half of a byte's step
_NAMES = ("augmix", "randaugment", "trivialaugment")
_OF_IMAGES = (str, BasicAugmentation, AdvancedAugmentation)


class AugmentationConsistency(LossTerm):
    """Lets the network see each sample as it is and augmented, and asks for the same prediction: AugMix's JSD loss.

    What it does: the training step gets ``views`` times as many samples in one batch: all as they are, and then all of
    them again, ``views`` − 1 times, each time augmented anew. The loss that it computes by ``cross_entropy`` or
    ``nll_loss`` is that of the clean samples alone, and λ times the mean Jensen–Shannon divergence between the
    predictions of the views joins it: CE(clean) + 12·JS of three views is AugMix's. With ``loss_of="all"`` the loss is
    the mean over all views, which with ``weight=0`` is repeated augmentation. The module's code isn't changed, and
    evaluation isn't affected.

    When to use: for image classifiers that should be robust to corruptions unseen in training, and calibrated under
    them. When not: where a step's time or memory is short; on images whose class the augmentation changes; with a data
    module that augments as well, where no view is clean. Where each pixel has a prediction, ``augment`` must be a list
    of torchvision's transforms that leave pixels in place, such as ``ColorJitter`` and ``GaussianBlur``.

    Cost: a training step of ``views`` times the batch, in compute and in memory of activations; torchvision's
    transforms, image by image. No state.

    Interacts with: BatchNorm, whose statistics are those of all views. Metrics of the training step see each sample
    ``views`` times, once clean. ``BatchMixing`` mixes all views in the same way, with one weight for the batch
    (``per_sample=False``). No gradient goes through the augmentation: ``AdversarialTraining`` attacks the clean view.

    Deviates from the papers: mixing chains are torchvision's ``AugMix``, drawn for each image and view. The mean of the
    predictions isn't clamped, and is computed from log-probabilities.

    Args:
        weight: Strength λ of the divergence, at least 0; 12 is the paper's.
        views: Number of views of each sample, the clean one included, at least 2.
        augment: ``"augmix"``, ``"randaugment"`` or ``"trivialaugment"``, torchvision's; an ``Augmentation``; or a list
            of transforms of single images.
        loss_of: Samples that the module's loss is computed on: ``"clean"`` ones, or ``"all"`` views.
        normalization: Mean and standard deviation of each channel by which the inputs were normalized, on the scale of
            [0, 1]; where None, those of the data module (``mean_and_std``); without these, inputs must lie in [0, 1].
        input_key: Position of the inputs in a batch: an index, a name, or a getter and a setter.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/augmentation_consistency``, its value, and ``penalty/augmentation_consistency_share``, its share of
        loss plus penalty, at the steps the trainer logs.

    Raises:
        SettingError: If a setting is out of its range, the module optimizes manually or is compiled as a whole; at the
            first batch, if its tensors don't have one row per sample, the inputs aren't floats in [0, 1] before
            normalization, the training step calls neither loss outside of activation checkpointing, mixes samples,
            compares them with each other or adds a sum over samples to a mean, or the logits are those of single
            pixels, which ``augment`` may move.

    Reference:
        Dan Hendrycks, Norman Mu, Ekin D. Cubuk, Barret Zoph, Justin Gilmer, Balaji Lakshminarayanan: AugMix: A Simple
        Data Processing Method to Improve Robustness and Uncertainty, ICLR 2020, arXiv:1912.02781. Repeated
        augmentation: Elad Hoffer, Tal Ben-Nun, Itay Hubara, Niv Giladi, Torsten Hoefler, Daniel Soudry: Augment Your
        Batch: Improving Generalization Through Instance Repetition, CVPR 2020, arXiv:1901.09335.

    >>> AugmentationConsistency(weight=12.0).views
    3
    """

    tag = "augmentation_consistency"
    usual_ranges = (Log("weight", 1.0, 20.0),)

    def __init__(
        self,
        *,
        weight: float = 12.0,
        views: int = 3,
        augment: str | Augmentation | list[nn.Module | Callable[[Tensor], Tensor]] = "augmix",
        loss_of: LossOf = "clean",
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        input_key: Key = 0,
        seed: int | None = None,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("weight", weight, low=0)
        check_count("views", views, low=2, high=10**4)
        check_choice("loss_of", loss_of, get_args(LossOf))
        check_key("input_key", input_key)
        check_seed(seed)
        super().__init__(schedule=schedule)
        self.weight = weight
        self.views = views
        self.augment = augment
        self.loss_of: LossOf = loss_of
        self.normalization = _checked(normalization)
        self.input_key = input_key
        self.seed = seed
        self._augmentation = _augmentation(augment)

    @property
    def augmentation(self) -> Augmentation:
        """Augmentation that creates the views."""
        return self._augmentation

    @property
    @override
    def is_idle(self) -> bool:
        return self.weight == 0 and self.loss_of == "clean"

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return ConsistencySession(self, run, self._penalty, copies=self.views)

    def _penalty(self, logits: Tensor, counted: Tensor | None) -> Tensor:
        counted = None if counted is None else counted[: len(counted) // self.views]
        views = copies_of(logits, self.views, technique=type(self).__name__)
        return jensen_shannon_divergence(views, self.weight, counted=counted)


def _checked(normalization: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if normalization is None:
        return None
    try:
        mean, std = (tuple(map(float, numbers)) for numbers in normalization)
    except (TypeError, ValueError) as error:
        raise SettingError(
            "normalization must be two lists of numbers, mean and standard deviation of each channel, but is "
            f"{normalization!r}"
        ) from error
    if len(mean) != len(std) or not mean:
        raise SettingError(f"normalization must have as many means as deviations, but is {normalization!r}")
    for value in std:
        check_range("normalization's deviation", value, low=0, low_open=True)
    return mean, std


def _augmentation(augment: Any) -> Augmentation:
    if isinstance(augment, str):
        check_choice("augment", augment, _NAMES)
        augment, _ = preset(augment, input_shape=(3, 32, 32))  # for these the shape makes no difference
    if isinstance(augment, list | tuple):
        return PerSampleAugmentation(transforms=augment)
    if isinstance(augment, Augmentation):
        return augment
    raise SettingError(
        f"augment must be one of {', '.join(_NAMES)}, an Augmentation or a list of transforms, but is {augment!r}"
    )


@dataclass(eq=False)
class ConsistencySession(LogitsSession):
    """One fit of augmentation consistency.

    Attributes:
        number: Index of this technique among the callbacks of its class.
        mean: The module's own loss as the mean over all views, where ``loss_of`` is ``"all"``.
        batch_idx: Index of the current training batch.
        input_shape: Shape of the inputs in the current batch, without the views.
    """

    technique: AugmentationConsistency
    mean: CopiesMean = field(init=False)
    number: int = field(init=False)
    batch_idx: int = field(default=0, init=False)
    input_shape: torch.Size = field(init=False)

    @override
    def _attach(self) -> None:
        """Checks the callbacks; attaches later, so that layers that change batches lie inside and treat views alike."""
        name = type(self.technique).__name__
        refuse_compiled_whole(self.run.module, name)
        self.number = instance_number(self.run.trainer, self.technique)
        self.mean = CopiesMean(self.run, self.technique.views, technique=name)
        for other in callbacks_of(self.run.trainer):
            if self._repeats(other):
                raise SettingError(
                    f"callbacks must not have {type(other).__name__} with {name}: both repeat the batch, so neither "
                    "finds which rows belong together"
                )
            if getattr(getattr(other, "mix", None), "per_sample", False):
                raise SettingError(
                    f"per_sample must be False with {name}, because views of a sample have to be mixed alike, but "
                    f"{type(other).__name__} mixes each row by a weight of its own"
                )

    def _repeats(self, other: Callback) -> bool:
        """Whether another callback also repeats the rows of the batch."""
        if self.technique.is_idle or other is self.technique:
            return False
        is_idle = getattr(other, "is_idle", False) or getattr(other, "prob", 1) == 0
        return isinstance(other, RDrop | RegMixup | AugmentationConsistency) and not is_idle

    @override
    def train_starts(self) -> None:
        super()._attach()

    @override
    def batch_starts(self, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    @override
    def _step(self, training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        # Also in the first step, which other terms watch even while their factor is 0.
        if self.technique.loss_of == "clean" and self.strength.now(self.run.trainer) == 0:
            self._log({})
            return training_step(batch, *args, **kwargs)
        own = training_step
        if not self.is_checked:
            technique = self.technique
            name = type(technique).__name__
            own = step_with_repeated(training_step, batch, times=technique.views, technique=name)

        def step(larger: Any, *args: Any, **kwargs: Any) -> Any:
            repeated = partial(own, larger, *args, **kwargs)
            if self.technique.loss_of == "clean":
                return repeated()
            return self.mean.run(repeated, partial(training_step, batch, *args, **kwargs), batch)

        return super()._step(step, batch, *args, **kwargs)

    @override
    def watched_batch(self, batch: Any) -> Any:
        technique = self.technique
        clean = dense_part_of(batch, technique.input_key, name="input_key")
        self.input_shape = clean.shape
        with torch._C.DisableTorchFunction(), torch.no_grad():
            views = self._augmented(clean.detach())
        batch = repeated(batch, technique.views, technique=type(technique).__name__)
        return with_parts(batch, [(technique.input_key, torch.cat((clean, views)))])

    @override
    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.technique.loss_of == "clean":
                # Entered first, and so called last: modes that mix or record a loss see all views.
                stack.enter_context(_CleanLosses(self.technique.views, self.losses, checks=not self.is_checked))
            stack.enter_context(super().watching())
            yield

    @override
    def term(self) -> Tensor:
        if not self.is_checked and self.technique.augmentation.moves_pixels:
            for logits, _ in self.seen:
                self._refuse_positions(logits)
        return super().term()

    def _refuse_positions(self, logits: Tensor) -> None:
        """Raises if logits are of single pixels: (N, K, H, W), of a lower resolution as well, or (N · H · W, K)."""
        (samples, _, *size), own = self.input_shape, logits.shape[2:]
        is_map = len(own) == len(size) and own.numel() > 1 and (len(size) > 1 or list(own) == size)
        pixels = math.prod(size)
        if is_map or (pixels > 1 and len(logits) == samples * pixels * self.technique.views):
            raise SettingError(
                f"augment must leave pixels in place where each of them has a prediction, here logits of shape "
                f"{tuple(logits.shape)}, but {self.technique.augment!r} may move them; give a list of torchvision's "
                "transforms that don't, such as ColorJitter and GaussianBlur"
            )

    # Views

    def _augmented(self, inputs: Tensor) -> Tensor:
        """Returns all views but the clean one, (N · (views − 1), C, ...)."""
        technique = self.technique
        if not inputs.is_floating_point() or inputs.ndim < 2:
            raise SettingError(
                "input_key must lead to inputs of a floating dtype with one row a sample, but "
                f"{type(technique).__name__} finds {inputs.dtype} of shape {tuple(inputs.shape)}"
            )
        if isinstance(technique.augment, _OF_IMAGES) and inputs.ndim != 4:
            raise SettingError(
                "input_key must lead to images (N, C, H, W) where augment isn't an Augmentation or transforms of your "
                f"own, but {type(technique).__name__} finds inputs of shape {tuple(inputs.shape)}"
            )
        values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        mean, std = self._constants(values)
        images = values * std + mean
        if not self.is_checked:
            _check_range(images, has_constants=bool(mean.any()) or bool((std != 1).any()))
        images = images.clamp(0, 1)
        augment = technique.augmentation
        if isinstance(augment, PerSampleAugmentation):  # torchvision's transforms are made for bytes
            images = (images * 255).round().byte()
        module = self.run.module
        position = (module.global_rank, module.current_epoch, self.batch_idx)
        stream = random_stream(base_seed(technique.seed), *position, type(technique).__name__, self.number)
        views = []
        for _ in range(technique.views - 1):
            changed = (augment(images, stream=stream) - mean) / std
            views.append(augment.after_normalization(changed.to(inputs.dtype), stream=stream))
        return torch.cat(views)

    def _constants(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the channels' mean and standard deviation, shaped to broadcast over the inputs."""
        data = getattr(self.run.trainer, "datamodule", None)
        given = self.technique.normalization or getattr(data, "mean_and_std", None)
        constants = [torch.as_tensor(numbers).to(inputs) for numbers in given or ((0.0,), (1.0,))]
        if len(constants[0]) not in (1, inputs.shape[1]):
            raise SettingError(
                f"normalization must have a number for each of the {inputs.shape[1]} channels, but has "
                f"{len(constants[0])}"
            )
        mean, std = (numbers.view(-1, *[1] * (inputs.ndim - 2)) for numbers in constants)
        return mean, std


def _check_range(images: Tensor, *, has_constants: bool) -> None:
    low, high = images.min().item(), images.max().item()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        they = "without it they lie" if has_constants else "they lie"
        raise SettingError(
            "normalization must be the mean and the standard deviation of channels that the inputs were normalized by, "
            f"but {they} in [{low:.4g}, {high:.4g}] rather than in [0, 1]"
        )


class _CleanLosses(TorchFunctionMode):
    """Calls the losses with the clean samples alone; everything else runs unchanged.

    Args:
        views: Number of views of each sample, the clean one first.
        losses: Names of the loss functions, by function.
        checks: Whether to check for losses within activation checkpointing.
    """

    def __init__(self, views: int, losses: dict[Callable[..., Tensor], str], *, checks: bool) -> None:
        super().__init__()
        self._views = views
        self._losses = losses
        self._checks = checks

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._losses or not will_have_gradients():  # otherwise it is a metric
            return func(*args, **kwargs)
        given = dict(zip(("input", "target"), args, strict=False)) | kwargs
        clean, *_ = copies_of(given["input"], self._views, technique=AugmentationConsistency.__name__)
        if self._checks:
            refuse_checkpointed(AugmentationConsistency.__name__)
        settings = {name: value for name, value in kwargs.items() if name not in ("input", "target")}
        return func(clean, given["target"][: len(clean)], *args[2:], **settings)
