"""Losses of mixed targets, computed where a training step calls a loss function of torch's.

The batch keeps its own labels, so that metrics go on working. Where a loss is computed from those labels, it is
computed from their partners' labels, too, and so is everything that the step computes from the two losses; the step
sees their interpolation: one forward pass, two losses.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from lightning_reg.callbacks.batch.followed_functions import (
    is_check,
    is_linear,
    is_of_elements,
    is_pure,
    is_repeated,
    returns_number,
    table_of,
    takes_out,
    writes,
)
from lightning_reg.callbacks.batch.weighted_losses import LOSSES, check_classes, settings_of, weighted
from lightning_reg.core.checkpointing import is_checkpointed, refuse_checkpointed, will_have_gradients
from lightning_reg.core.copies.repetition import loss_of
from lightning_reg.functional.batch.mixing import previous
from lightning_reg.settings import SettingError

__all__ = ["InterpolatedLosses"]


_FOREIGN = "code that isn't torch's, is compiled or is checkpointed"
_DIFFERENTIATING = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)


class InterpolatedLosses(TorchFunctionMode):
    r"""Mode in which losses of a batch's targets become those of the mixed targets.

    .. math:: (1 - w) \, L(y_a) + w \, L(y_b)

    with y_b the targets of the preceding samples. L is everything that the training step computes from a loss of
    torch's: a root, a focal weight, the mean of its largest values; and what it computes of the targets by hand beside
    that: a Dice loss, the probability of the label. If every sample has its own weight, each of the two losses is a
    weighted sum over samples with the loss's own divisor: for a mean, the number of elements, or the sum of the class
    weights of y_a or y_b; whatever is computed from that has to be linear.

    Args:
        targets: Targets y_a: the same tensor object that the training step gets.
        minor_weight: Weight w of the partners, a scalar or (N,); None if losses are only watched.
        technique: Name of the mixing technique, for error messages.
        beside: Further tensors of the batch, of which a loss would be computed for each sample alone.

    Attributes:
        trains: Whether something with a gradient was computed from torch's losses of the targets; they may be metrics.
        by_hand: Names of other functions with a differentiable result from the targets, which is mixed as a loss is.
        unmixed: Names of losses that were computed from tensors beside the targets.
        others: Names of functions whose differentiable result from the targets isn't mixed, or that have one from what
            functions that can't be repeated for the partners computed from them (those that draw random numbers, write
            in place, pick some of the targets, or aren't known).
        taken: Names of functions that took values of the targets or of a loss out of torch, by which a loss may have
            been computed or chosen since.
        out: As ``taken``, but of values by which nothing was computed unless one of ``companions`` was.
        companions: Numbers and arrays without a gradient that a loss met after values were taken out.
    """

    def __init__(
        self, targets: Tensor, minor_weight: Tensor | None, *, technique: str, beside: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.technique = technique
        self.minor_weight = minor_weight
        self.trains = False
        self.by_hand: set[str] = set()
        self.others: set[str] = set()
        self.unmixed: set[str] = set()
        self.taken: set[str] = set()
        self.out: set[str] = set()
        self.companions: list[Any] = []
        self._out_of_targets: set[str] = set()
        # By id. The tensors are kept alive, so that no id is reused.
        self._beside = {id(tensor): tensor for tensor in beside}
        self._targets: dict[int, _Pair] = {}
        self._losses: dict[int, _Pair] = {}
        self._lost: dict[int, tuple[Tensor, str]] = {}  # computed from targets, but not from their partners
        self._unmixed: dict[int, tuple[Tensor, str]] = {}  # computed from losses, likewise
        self._put(self._targets, targets, targets, previous(targets))

    def check_returned(self, output: Any) -> None:
        """Raises unless the loss that the training step returns is known to be mixed.

        Args:
            output: A loss, or a mapping that has one; None if the batch is skipped.

        Raises:
            SettingError: If a function that can't be followed was applied to the loss; the message names it.
        """
        loss = loss_of(output)
        if isinstance(loss, Tensor) and loss.requires_grad and self.trains and not self.others:
            if id(loss) in self._unmixed:
                self._refuse(self._unmixed[id(loss)][1])
            pair = self._losses.get(id(loss))
            if pair is None or pair.is_changed():
                self._refuse(_FOREIGN)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs a function of torch's; twice if it is applied to losses of the targets."""
        kwargs = kwargs or {}
        operands = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        if takes_out(func) and self.minor_weight is not None:
            return self._taken_out(func, operands, args, kwargs)
        if any(id(value) in self._unmixed for value in operands):
            return self._of_unmixed(func, operands, args, kwargs)
        targets = [self._targets[id(value)] for value in operands if id(value) in self._targets]
        losses = [self._losses[id(value)] for value in operands if id(value) in self._losses]
        lost = [self._lost[id(value)][1] for value in operands if id(value) in self._lost]
        if func in LOSSES and not targets and any(id(value) in self._beside for value in operands):
            self.unmixed.add(_name(func))
        if func in LOSSES and targets and not lost:
            return self._interpolated(func, targets, operands, args, kwargs)
        if losses and not lost:
            return self._of_losses(func, losses, targets, args, kwargs)
        if targets or lost:
            return self._of_targets(func, targets, lost, args, kwargs)
        return func(*args, **kwargs)

    # Functions of the targets

    def _of_targets(
        self, func: Callable[..., Any], targets: list[_Pair], lost: list[str], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        result = func(*args, **kwargs)
        made = _tensors(result)
        if any(value.requires_grad for value in made):
            if not lost and self._can_be_mixed(func, targets, result, args, kwargs):
                return self._by_hand(func, result, args, kwargs)
            self.others.add(f"{_name(func)} of what {lost[0]} made" if lost else _name(func))
        elif (
            not lost
            and not any(target.is_changed() for target in targets)
            and (self._can_be_followed(func, args, kwargs) or self._can_be_repeated(func, args, kwargs))
        ):
            if any(id(value) not in self._targets for value in made):
                self._follow(func, made, args, kwargs)
        else:
            written = args[:1] if func is Tensor.__setitem__ else ()
            for value in (*made, *written):
                if id(value) not in self._targets:
                    self._lost[id(value)] = value, lost[0] if lost else _name(func)
        return result

    def _follow(self, func: Callable[..., Any], made: list[Tensor], args: Any, kwargs: dict[str, Any]) -> None:
        others, named = self._ends(args, kwargs, partners=True)
        try:
            partners = _tensors(func(*others, **named))
        except (RuntimeError, ValueError, IndexError):  # what holds for the labels of one end needn't for the other
            partners = []
        if len(partners) == len(made):
            for value, partner in zip(made, partners, strict=True):
                self._put(self._targets, value, value, partner)
        else:
            self._lost.update({id(value): (value, _name(func)) for value in made})

    def _can_be_mixed(
        self, func: Callable[..., Any], targets: list[_Pair], result: Any, args: Any, kwargs: dict[str, Any]
    ) -> bool:
        """Whether a differentiable result of the targets can be interpolated like a loss."""
        return (
            isinstance(result, Tensor)
            and not any(target.is_changed() for target in targets)
            and func is not F.embedding  # labels that a network takes in, rather than what it is compared with
            and self._can_be_followed(func, args, kwargs)
            and self._keeps_samples(func, targets, args)
            and not is_checkpointed()
        )

    def _by_hand(self, func: Callable[..., Any], result: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        self.by_hand.add(_name(func))
        if self.minor_weight is None:
            return self._between(result, result, True)
        others, named = self._ends(args, kwargs, partners=True)
        return self._between(result, func(*others, **named), True)

    def _can_be_followed(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
        is_followed = is_pure(func, one_weight=self._has_one_weight) and not _picks(func, args)
        return (is_followed or self._is_lookup(func, args, kwargs)) and kwargs.get("out") is None

    def _can_be_repeated(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether any function of the targets that nothing is trained by can be applied to their partners."""
        return self._has_one_weight and is_repeated(func) and not _picks(func, args) and kwargs.get("out") is None

    @property
    def _has_one_weight(self) -> bool:
        return self.minor_weight is None or not self.minor_weight.ndim

    def _is_lookup(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether targets, as class indices, look values up in a tensor that is the same for both ends."""
        table = table_of(func, args, kwargs)
        if table is None or id(table) in self._targets:
            return False
        indices = [value for value in _flat((*args, *kwargs.values())) if id(value) in self._targets]
        return all(index.dtype not in (torch.bool, torch.uint8) for index in indices)  # these are masks

    # The losses

    def _interpolated(
        self,
        loss: Callable[..., Tensor],
        targets: list[_Pair],
        operands: list[Tensor],
        args: Any,
        kwargs: dict[str, Any],
    ) -> Tensor:
        if any(target.is_changed() for target in targets):
            raise SettingError(
                f"the targets must not be changed in place in training_step with {self.technique}, which wouldn't "
                "change those that are mixed in; make other targets instead: targets = targets.clamp(min=0)"
            )
        if any(value.requires_grad for value in operands) or (not torch.is_grad_enabled() and will_have_gradients()):
            refuse_checkpointed(self.technique)
        kwargs = settings_of(kwargs)
        weight = self.minor_weight
        try:
            if weight is not None and weight.ndim and kwargs.get("reduction", "mean") != "none":
                others, named = self._ends(args, kwargs, partners=True)
                exact = weight.to(torch.promote_types(weight.dtype, (args[0] if args else kwargs["input"]).dtype))
                total = weighted(loss, 1 - exact, args, kwargs) + weighted(loss, weight, others, named)
                self._put(self._losses, total, None, None)
            else:
                total = self._both(loss, args, kwargs)
        except IndexError:
            check_classes(loss, args, kwargs)
            raise
        if total.requires_grad:
            self.taken |= self._out_of_targets
        return total

    def _both(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs a function on each end, and returns the interpolation of the results."""
        pairs = [self._losses.get(id(value)) for value in _flat((*args, *kwargs.values()))]
        is_by_hand = func not in LOSSES and all(pair.is_by_hand for pair in pairs if pair is not None)
        own, named = self._ends(args, kwargs, partners=False)
        one = func(*own, **named)
        if not _tensors(one):  # a shape, a number
            return func(*args, **kwargs)
        if self.minor_weight is None:
            other = one
        else:
            others, named = self._ends(args, kwargs, partners=True)
            other = func(*others, **named)
        if isinstance(one, Tensor):
            return self._between(one, other, is_by_hand)
        mixed = [
            self._between(a, b, is_by_hand) if isinstance(a, Tensor) else a for a, b in zip(one, other, strict=True)
        ]
        return type(one)(*mixed) if hasattr(one, "_fields") else type(one)(mixed)

    def _between(self, one: Tensor, other: Tensor, is_by_hand: bool) -> Tensor:
        # An operation that another mixing around this one can follow.
        result = one.view(one.shape) if one is other else one
        weight = self.minor_weight
        # Counts, indices and comparisons can't be interpolated, nor can selections of different lengths.
        if weight is not None and (one.is_floating_point() or one.is_complex()) and one.shape == other.shape:
            if weight.ndim:
                weight = weight.view(-1, *[1] * (one.ndim - 1))
            exact = weight.to(torch.promote_types(weight.dtype, one.dtype))
            result = (1 - exact).to(one.dtype) * one + weight.to(one.dtype) * other
        self._put(self._losses, result, one, other, is_by_hand=is_by_hand)
        return result

    # Functions of the losses

    def _of_losses(
        self,
        func: Callable[..., Any],
        losses: list[_Pair],
        targets: list[_Pair],
        args: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        if self.out and any(loss.has_gradient for loss in losses):
            self.companions += self._others(args, kwargs)
        changed = any(pair.is_changed() for pair in (*losses, *targets))
        has_ends = not changed and all(loss.own is not None for loss in losses)
        if has_ends and is_repeated(func) and kwargs.get("out") is None and self._keeps_samples(func, losses, args):
            return self._both(func, args, kwargs)
        if changed and func in _DIFFERENTIATING:
            self._refuse(_FOREIGN)
        result = func(*args, **kwargs)
        made = [*_tensors(result), *(args[:1] if writes(func) else ())]
        is_followed = not targets and not changed and is_linear(func, [self._has_losses(value) for value in args])
        is_by_hand = all(loss.is_by_hand for loss in losses)
        for value in made:
            self._losses.pop(id(value), None)
            if is_followed:
                self._put(self._losses, value, None, None, is_by_hand=is_by_hand)
            else:
                self._unmixed[id(value)] = value, _FOREIGN if changed else _name(func)
        return result

    def _keeps_samples(self, func: Callable[..., Any], losses: list[_Pair], args: Any) -> bool:
        """Whether the result of a function of losses can be interpolated again by the present weights."""
        if self.minor_weight is None or not self.minor_weight.ndim:
            return True
        if _name(func) in ("all", "any"):  # which aren't interpolated
            return True
        shape = losses[0].value.shape
        if not is_of_elements(func) or not shape or shape[0] != len(self.minor_weight):
            return False
        shapes = [value.shape for value in args if isinstance(value, Tensor)]
        return bool(torch.broadcast_shapes(*shapes) == shape)  # type: ignore[no-untyped-call]

    def _has_losses(self, value: Any) -> bool:
        return any(id(entry) in self._losses for entry in _flat((value,)))

    def _of_unmixed(self, func: Callable[..., Any], operands: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        unmixed = [value for value in operands if id(value) in self._unmixed]
        name = self._unmixed[id(unmixed[0])][1]
        is_compared = func in LOSSES and any(id(value) in self._targets for value in operands)
        if func in _DIFFERENTIATING or (is_compared and any(value.requires_grad for value in unmixed)):
            self._refuse(name)
        result = func(*args, **kwargs)
        for value in _tensors(result):
            self._unmixed[id(value)] = value, name
        return result

    # Values that leave torch

    def _taken_out(self, func: Callable[..., Any], operands: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs a function that returns no tensor, and notes it unless the value is the same for both ends.

        A value that is only logged can't be told from one that a loss is multiplied by later, but most are logged last.
        """
        unmixed = [self._unmixed[id(value)][1] for value in operands if id(value) in self._unmixed]
        losses = [self._losses[id(value)] for value in operands if id(value) in self._losses]
        targets = [self._targets[id(value)] for value in operands if id(value) in self._targets]
        is_lost = any(id(value) in self._lost for value in operands)
        if not (unmixed or losses or targets or is_lost) or (unmixed and all(map(is_check, unmixed))):
            return func(*args, **kwargs)
        is_known = not unmixed and not is_lost and all(pair.own is not None for pair in losses)
        result, ends = self._with_ends(func, args, kwargs) if is_known else (func(*args, **kwargs), ())
        # A loss has two values anyway.
        if ends and not (losses and isinstance(result, float)) and math.isclose(*ends, rel_tol=1e-6):
            return result
        name = _name(func)
        if isinstance(result, bool):
            if torch.is_grad_enabled() and not is_lost:  # else it is a metric's, or a check of what labels there are
                self.taken.add(name)
            return result
        self.out.add(name)
        if not losses and not unmixed and not isinstance(result, float):
            self._out_of_targets.add(name)
        return result

    def _with_ends(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """Returns what a function takes out, and if that is a number the same of each end, where there is one."""
        own, partners = (self._ends(args, kwargs, partners=of_partners) for of_partners in (False, True))
        if returns_number(func) and all(part.numel() == 1 for part in (args[0], own[0][0], partners[0][0])):
            # The host waits for the device once.
            result, *ends = map(func, torch.stack((args[0], own[0][0], partners[0][0])).cpu())
            return result, tuple(ends)
        result = func(*args, **kwargs)
        if isinstance(result, bool):
            with contextlib.suppress(RuntimeError, ValueError):
                return result, (func(*own[0], **own[1]), func(*partners[0], **partners[1]))
        return result, ()

    def _others(self, args: Any, kwargs: dict[str, Any]) -> list[Any]:
        """Returns the arguments, beside the followed ones, that may be computed from values taken out."""
        values = _flat((*args, *kwargs.values()))
        followed = (self._losses, self._targets)
        return [
            value
            for value in values
            if isinstance(value, float) or (hasattr(value, "__array__") and not getattr(value, "requires_grad", False))
            if not any(id(value) in map_ for map_ in followed)
        ]

    # Ends

    def _refuse(self, name: str) -> None:
        raise SettingError(
            "the loss must be followed from torch's function to what training_step returns with "
            f"{self.technique}, but what {name} makes of it can't be; use another function, or mix in the data module, "
            "which emits probabilities as targets"
        )

    def _put(
        self,
        where: dict[int, _Pair],
        value: Tensor,
        own: Tensor | None,
        partners: Tensor | None,
        *,
        is_by_hand: bool = False,
    ) -> None:
        self.trains |= where is self._losses and value.requires_grad and not is_by_hand
        where[id(value)] = _Pair(value, own, partners, _version(value), value.requires_grad, is_by_hand)

    def _ends(self, args: Any, kwargs: dict[str, Any], *, partners: bool) -> tuple[Any, dict[str, Any]]:
        """Returns arguments with one of the two ends in place of their interpolation."""

        def end(value: Any) -> Any:
            if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
                return type(value)(end(entry) for entry in value) if type(value) in (list, tuple) else value
            pair = self._losses.get(id(value)) or self._targets.get(id(value))
            if pair is None:
                return value
            return pair.partners if partners else pair.own

        return tuple(end(value) for value in args), {name: end(value) for name, value in kwargs.items()}


@dataclass(frozen=True)
class _Pair:
    """A tensor that the training step sees, with the two ends behind it.

    Attributes:
        value: Targets, or values computed from them; for losses, the interpolation of the two ends.
        own: Value for the batch's own targets; None if only the interpolation is known.
        partners: Value for the targets of their partners.
        version: Version counter of ``value`` when it was recorded.
        has_gradient: Whether ``value`` required a gradient then: the result of a user's autograd function doesn't yet.
        is_by_hand: Whether no loss of torch's is among what ``value`` was computed from.
    """

    value: Tensor
    own: Tensor | None
    partners: Tensor | None
    version: int
    has_gradient: bool
    is_by_hand: bool

    def is_changed(self) -> bool:
        """Whether ``value`` was changed since, without its two ends."""
        return _version(self.value) != self.version or self.value.requires_grad != self.has_gradient


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # inference tensors have no version counter


def _picks(func: Callable[..., Any], args: Any) -> bool:
    """Whether a function picks entries of a tensor, whose number may depend on the targets."""
    index = args[1:2] if func is Tensor.__getitem__ else ()
    return any(isinstance(entry, Tensor | list) for entry in _flat(index))


def _flat(values: Iterable[Any]) -> list[Any]:
    """Returns values, with lists and tuples among them flattened by one level."""
    return [entry for value in values for entry in (value if isinstance(value, list | tuple) else (value,))]


def _tensors(result: Any) -> list[Tensor]:
    return [value for value in _flat((result,)) if isinstance(value, Tensor)]


def _name(func: Callable[..., Any]) -> str:
    return str(resolve_name(func) or getattr(func, "__name__", func)).rsplit(".", 1)[-1]
