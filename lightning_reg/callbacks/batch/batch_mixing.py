"""Mixup, CutMix and the other mixing transforms for an existing project."""

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.batch.loss_interpolation import InterpolatedLosses
from lightning_reg.callbacks.batch.weighted_losses import LOSSES
from lightning_reg.core.batches import Key, check_key, dense_part_of, look_at, part_of, with_parts
from lightning_reg.core.copies.repetition import loss_of
from lightning_reg.core.facts import Place
from lightning_reg.core.lightning import compiled_call, instance_number, is_compiled, refuse_compiled_whole
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.streams import base_seed, check_seed, random_stream
from lightning_reg.core.technique import Technique
from lightning_reg.core.wrapping import Handle, around
from lightning_reg.settings import SettingError, check_count
from lightning_reg.transforms import Draw, Mixing

__all__ = ["BatchMixing"]


class BatchMixing(Technique):
    """Mixes the batches of somebody else's training step, without a change of its code.

    What it does: the training step gets mixed inputs and the batch's own targets, so that metrics go on working. Where
    it computes a loss of these targets by a function or module of torch's, the loss becomes
    λ·L(y_a) + (1 - λ)·L(y_b), with class weights, label smoothing and all other arguments unchanged; y_b are the
    targets of the samples that were mixed in, λ ≥ 1/2. L includes everything that the step computes from the loss up to
    its return value: a root, a focal weight, the mean over the hardest samples. There is one forward pass. Targets may
    be class indices, one-hot, multi-label or numbers, one a sample or one a pixel: into maps of the images' size,
    CutMix pastes the same box as into the images, and any loss takes these. Validation and test aren't affected.

    When to use: to add Mixup, CutMix, Cutout or random erasing to a project whose data module you don't want to touch.
    When not: with our own data modules, which mix by themselves (``ImageData(mix=...)``); where the loss is computed by
    a function that isn't torch's, or in compiled code, which is refused at the first such batch.

    Cost: that of the transform, and a second evaluation of the loss and of what is computed from it. Memory: one batch
    of inputs. No state.

    Interacts with: CutMix and the erasing transforms need images. What is computed from the targets by hand beside a
    loss of torch's (a Dice loss, a focal weight, the distance from a class's center) is mixed, too, and so are labels
    that are written into a tensor of the step's (``onehot.scatter_(1, labels, 1)``); labels that a network takes in by
    an embedding or a matrix are the batch's own, with a warning. Training accuracy is that of the dominant label on
    mixed inputs, and so lower than without mixing. Regression losses are interpolated, too: the mean squared error's
    gradient is that of the interpolated target. What can't be followed (code that isn't torch's, with
    ``per_sample=True`` everything nonlinear) is refused by name, and so is a loss inside activation checkpointing. A
    branch by a number that was taken out of a loss (``if loss.item() > 1``) is warned of when a step takes another way
    than the step before, ``if loss > 1`` when the two losses would. ``F.l1_loss(weight=...)`` loses its weight within
    any of torch's function modes (2.14), and so here.

    Deviates from the papers: see the transforms. With ``per_sample=True`` each side of a mean has the loss's own
    divisor, so that with class weights it is the weighted mean of each side.

    Args:
        mix: Transform drawn for each batch: ``Mixup``, ``CutMix``, ``MixupOrCutMix``, ``Cutout``, ``RandomErasing``.
        input_key: Position of the inputs in a batch: an index, a name (a dictionary's key, a field or an attribute), or
            a getter and a setter; the setter returns a batch with other inputs.
        target_key: Position of the targets in a batch, likewise.
        epochs: Number of epochs with mixing, at least 0; later batches aren't changed. All where None.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If an argument is invalid; in training, if a batch has no such part, or no loss of torch's is
            computed from its targets, unless the step returns None or 0.

    Reference:
        Hongyi Zhang, Moustapha Cissé, Yann N. Dauphin, David Lopez-Paz: mixup: Beyond Empirical Risk Minimization,
        ICLR 2018, arXiv:1710.09412. Sangdoo Yun et al.: CutMix: Regularization Strategy to Train Strong Classifiers
        with Localizable Features, ICCV 2019, arXiv:1905.04899.

    >>> from lightning_reg.transforms import Mixup
    >>> BatchMixing(Mixup(alpha=0.4), input_key="image", target_key="label").mix
    Mixup(alpha=0.4, prob=1.0, per_sample=False)
    """

    place = Place.BATCH

    def __init__(
        self,
        mix: Mixing,
        *,
        input_key: Key = 0,
        target_key: Key = 1,
        epochs: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(mix, Mixing):
            raise SettingError(f"mix must be a transform such as Mixup(alpha=0.4), but is {mix!r}")
        check_key("input_key", input_key)
        check_key("target_key", target_key)
        if epochs is not None:
            check_count("epochs", epochs, low=0)
        check_seed(seed)
        self.mix = mix
        self.input_key = input_key
        self.target_key = target_key
        self.epochs = epochs
        self.seed = seed

    @property
    def current(self) -> Draw | None:
        """Draw of the latest batch; None if that isn't mixed, and outside of a fit."""
        return self.session.current if isinstance(self.session, MixingSession) else None

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return MixingSession(self, run)


@dataclass(eq=False)
class MixingSession(Session[BatchMixing]):
    """One fit of batch mixing.

    Attributes:
        innermost: Whether its layer lies directly around the training step.
        current: Draw of the latest batch; None if that isn't mixed.
        number: Index of this technique among the callbacks of its class.
        batch_idx: Index of the current training batch.
        is_checked: Whether a training step has been seen to compute a loss of the targets.
        has_partners: Whether a batch has had more samples than one; None before the first.
        told: Warnings that have been given.
        companions: Those of the losses of the latest step that took values out.
    """

    innermost: ClassVar[bool] = False
    current: Draw | None = None
    number: int = field(init=False)
    batch_idx: int = 0
    is_checked: bool = False
    has_partners: bool | None = None
    told: set[str] = field(default_factory=set)
    companions: list[Any] | None = None

    def __post_init__(self) -> None:
        run = self.run
        refuse_compiled_whole(run.module, self.name)
        self.number = instance_number(run.trainer, self.technique)
        run.around_step("training_step", self._step, innermost=self.innermost)
        for handle in _leave_compiled_alone(run.module):
            run.until_end(handle)

    @property
    def name(self) -> str:
        """Name of the technique, for error messages."""
        return type(self.technique).__name__

    @property
    def _target_key(self) -> str:
        key = self.technique.target_key
        return f"target_key {key!r}" if isinstance(key, int | str) else "target_key"  # functions have no short form

    @override
    def batch_starts(self, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    @override
    def epoch_ends(self) -> None:
        if self.technique.mix.needs_partner and self.has_partners is False:
            rank_zero_warn(f"{self.name} has no effect: no batch has a second sample to mix the first with")
            self.has_partners = True  # said once

    def _step(self, training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        mixing = self.technique
        self.current = None
        if mixing.epochs is not None and self.run.module.current_epoch >= mixing.epochs:
            return training_step(batch, *args, **kwargs)
        inputs = dense_part_of(batch, mixing.input_key, name="input_key")
        targets = dense_part_of(batch, mixing.target_key, name="target_key")
        if not targets.ndim or len(inputs) != len(targets):
            raise SettingError(
                f"input_key and target_key must lead to as many samples, but the batch has inputs of shape "
                f"{tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}"
            )
        self.has_partners = bool(self.has_partners) or len(inputs) > 1
        self.current = draw = self._drawn(inputs)
        is_pasted = mixing.mix.pastes_into(targets, inputs, draw)
        minor_weight = None
        if draw is not None:
            batch, targets, minor_weight = self._mixed(batch, inputs, targets, draw)
        if not mixing.mix.needs_partner or (draw is None and (self.is_checked or is_pasted)):
            return training_step(batch, *args, **kwargs)
        beside = _tensors_beside(batch, mixing.input_key, targets)
        # Pasted targets are right for any loss, and only losses beside them are watched.
        watched = targets.new_empty(0) if is_pasted else targets
        with InterpolatedLosses(watched, minor_weight, technique=self.name, beside=beside) as losses:
            output = training_step(batch, *args, **kwargs)
        if is_pasted:
            self._tell_unmixed(losses)
            return output
        self._check(losses, output)
        losses.check_returned(output)
        return output

    def _mixed(self, batch: Any, inputs: Tensor, targets: Tensor, draw: Draw) -> tuple[Any, Tensor, Tensor | None]:
        """Returns the batch for the training step, its targets, and the weight of their partners."""
        is_pasted = self.technique.mix.pastes_into(targets, inputs, draw)
        # A new tensor object, by whose identity losses of these targets are recognized.
        targets = draw.change(targets) if is_pasted else targets.view_as(targets)
        parts = [(self.technique.input_key, self._changed(inputs, draw)), (self.technique.target_key, targets)]
        return with_parts(batch, parts), targets, None if is_pasted else draw.minor_weight

    def _drawn(self, inputs: Tensor) -> Draw | None:
        return self.technique.mix.drawn(inputs, stream=self._stream())

    def _changed(self, inputs: Tensor, draw: Draw) -> Tensor:
        """Returns the inputs for the training step."""
        return draw.change(inputs)

    def _stream(self, name: str = "") -> Random:
        module = self.run.module
        position = (module.global_rank, module.current_epoch, self.batch_idx)
        return random_stream(base_seed(self.technique.seed), *position, self.name + name, self.number)

    def _check(self, losses: InterpolatedLosses, output: Any) -> None:
        """Raises if the training step's loss isn't mixed, and warns of other uses of the targets.

        At every step: a loss may change in the course of a fit.
        """
        if not losses.trains:
            if self._is_left_out(losses, output):
                return
            of_torch = ", ".join(loss.__name__ for loss in LOSSES)
            others = losses.others | losses.by_hand
            computed = f", but {', '.join(sorted(others))} of them" if others else ""
            raise SettingError(
                f"the loss must be computed by a function of torch's of the batch's targets ({self._target_key}) with "
                f"{self.name}, else it can't be mixed; training_step called none "
                f"of {of_torch} (metrics aside) with them{computed}. Use one of these, or mix in the data module, "
                "which emits probabilities as targets"
            )
        self.is_checked = True
        if losses.others:
            self._tell(
                f"{self.name} mixes the loss that torch computes of the targets, but training_step also makes "
                f"something differentiable of them by {', '.join(sorted(losses.others))}: that sees each sample's own "
                "target alone"
            )
        out = losses.values_out
        taken = out.taken | (out.out if out.out and self._are_new(out.companions) else set())
        if taken:
            self._tell(
                f"{self.name} mixes what torch computes, but training_step takes values of the loss or the targets out "
                f"of torch by {', '.join(sorted(taken))}: where a loss is computed or chosen by these, that "
                "isn't mixed; use tensors there, as in loss / loss.detach(), and the weight of torch's losses"
            )
        self._tell_unmixed(losses)

    def _tell_unmixed(self, losses: InterpolatedLosses) -> None:
        if losses.unmixed:
            self._tell(
                f"{self.name} mixes the inputs and the loss of {self._target_key}, but "
                f"training_step also computes {', '.join(sorted(losses.unmixed))} of another part of the batch, which "
                "isn't mixed"
            )

    def _are_new(self, companions: list[Any]) -> bool:
        """Whether a loss met other functions and numbers than before, and so may be computed or chosen by itself."""
        before, self.companions = self.companions, [_remembered(value) for value in companions]
        return before is not None and self.companions != before

    def _is_left_out(self, losses: InterpolatedLosses, output: Any) -> bool:
        """Whether a batch isn't trained on, or by nothing that is made of its targets."""
        if not self.run.module.automatic_optimization:  # a step of the discriminator's, for one
            return self.is_checked and not (losses.others or losses.by_hand)
        loss = loss_of(output)
        return loss is None or bool(loss == 0)  # a batch without labels; the host waits in such a step alone

    def _tell(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            rank_zero_warn(text)


def _remembered(value: Any) -> Any:
    """Returns names and numbers, and a tensor or an array as a reference that is equal to another of the same alone."""
    return value if isinstance(value, str | float | np.generic) else (id(value), weakref.ref(value))


def _tensors_beside(batch: Any, input_key: Key, targets: Tensor) -> list[Tensor]:
    """Returns the tensors of a batch that are neither its inputs nor its targets."""
    tensors: list[Tensor] = []
    look_at(batch, Tensor, tensors.append)
    inputs = part_of(batch, input_key, name="input_key")
    return [tensor for tensor in tensors if tensor is not inputs and tensor is not targets]


def _leave_compiled_alone(module: nn.Module) -> list[Handle]:
    """Leaves :class:`InterpolatedLosses` while compiled parts of a module run, until the handles are removed.

    Code compiled within a mode depends on the state of the mode, and would be recompiled for every batch. Losses that
    are computed in compiled code therefore go unseen.
    """
    compiled = [part for part in module.modules() if is_compiled(part)]
    return [around(part, compiled_call(part) or "forward", _outside) for part in compiled]


def _outside(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with ExitStack() as stack:
        while isinstance(torch.overrides._get_current_function_mode(), InterpolatedLosses):  # type: ignore[no-untyped-call]
            stack.enter_context(torch.overrides._pop_mode_temporarily())
        return compiled(*args, **kwargs)
