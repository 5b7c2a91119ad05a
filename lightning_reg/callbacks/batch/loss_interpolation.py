"""Losses of mixed targets, computed where a training step calls a loss function of torch's.

The batch keeps its own labels, so that metrics go on working. Where a loss is computed from those labels, it is
computed from their partners' labels, too, and so is everything that the step computes from the two losses; the step
sees their interpolation: one forward pass, two losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_reg.callbacks.batch.ends import (
    Known,
    Pair,
    copy_like,
    ends_may_differ,
    flat,
    memory_of,
    name_of,
    same_view,
    tensors,
)
from lightning_reg.callbacks.batch.followed_functions import (
    is_linear,
    is_of_elements,
    is_pure,
    is_repeated,
    table_of,
    takes_in,
    takes_out,
    writes,
    writes_alike,
)
from lightning_reg.callbacks.batch.values_out import ValuesOut
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
            functions that can't be repeated for the partners computed from them, which draw random numbers.
        values_out: Functions that took values of the targets or of a loss out of torch.
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
        self._known = Known()
        self.values_out = ValuesOut(self._known)
        # By id. The tensors are kept alive, so that no id is reused.
        self._beside = {id(tensor): tensor for tensor in beside}
        self._memories: dict[int, Tensor] = {}  # into which targets were written
        self._put(self._known.targets, Pair(targets, targets, previous(targets)))

    def check_returned(self, output: Any) -> None:
        """Raises unless the loss that the training step returns is known to be mixed.

        Args:
            output: A loss, or a mapping that has one; None if the batch is skipped.

        Raises:
            SettingError: If a function that can't be followed was applied to the loss; the message names it.
        """
        loss = loss_of(output)
        if isinstance(loss, Tensor) and loss.requires_grad and self.trains and not self.others:
            if id(loss) in self._known.unmixed:
                self._refuse(self._known.unmixed[id(loss)][1])
            pair = self._known.losses.get(id(loss))
            if pair is None or pair.is_changed():
                self._refuse(_FOREIGN)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs a function of torch's; twice if it is applied to losses of the targets."""
        kwargs = kwargs or {}
        operands = tensors(flat((*args, *kwargs.values())))
        if self._memories:
            self._note_views(operands)
        if takes_out(func) and self.minor_weight is not None:
            return self.values_out.run(func, operands, args, kwargs)
        if any(id(value) in self._known.unmixed for value in operands):
            return self._of_unmixed(func, operands, args, kwargs)
        targets = [self._known.targets[id(value)] for value in operands if id(value) in self._known.targets]
        losses = [self._known.losses[id(value)] for value in operands if id(value) in self._known.losses]
        lost = [self._known.lost[id(value)][1] for value in operands if id(value) in self._known.lost]
        if func in LOSSES and not targets and any(id(value) in self._beside for value in operands):
            self.unmixed.add(name_of(func))
        if func in LOSSES and targets and not lost:
            if any(loss.own is None for loss in losses):
                self._refuse("a function that writes in place")
            return self._interpolated(func, targets, operands, args, kwargs)
        if losses and not lost:
            return self._of_losses(func, losses, targets, args, kwargs)
        if targets or lost:
            return self._of_targets(func, targets, lost, args, kwargs)
        return func(*args, **kwargs)

    # Functions of the targets

    def _of_targets(
        self, func: Callable[..., Any], targets: list[Pair], lost: list[str], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if writes(func) and args and not self._is_of_the_batch(args[0]):
            return self._write(func, targets, lost, args, kwargs)
        result = func(*args, **kwargs)
        made = tensors(result)
        if any(value.requires_grad for value in made):
            if not lost and self._can_be_mixed(func, targets, result, args, kwargs):
                return self._by_hand(func, result, args, kwargs)
            self.others.add(f"{name_of(func)} of what {lost[0]} made" if lost else name_of(func))
        elif (
            not lost
            and not any(target.is_changed() for target in targets)
            and (self._can_be_followed(func, args, kwargs) or self._can_be_repeated(func, kwargs))
        ):
            if any(id(value) not in self._known.targets for value in made):
                self._follow(func, made, args, kwargs)
        else:
            for value in made:
                if id(value) not in self._known.targets and id(memory_of(value)) not in self._memories:
                    self._known.lost[id(value)] = value, lost[0] if lost else name_of(func)
        return result

    def _is_of_the_batch(self, tensor: Tensor) -> bool:
        """Whether a tensor shows targets in the batch's own memory, of which the partners have no copy alike."""
        return id(tensor) in self._known.targets and id(memory_of(tensor)) not in self._known.targets

    def _write(
        self, func: Callable[..., Any], targets: list[Pair], lost: list[str], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Runs a function that writes what is made of the targets, and writes the partners' into a copy."""
        written, memory = args[0], memory_of(args[0])
        copy = None
        if not lost and writes_alike(func) and not any(target.is_changed() for target in targets):
            known = self._known.targets.get(id(memory))
            copy = copy_like(memory, memory if known is None or known.partners is None else known.partners)
        others, named = self._known.ends(args, kwargs, partners=True)
        is_followed = False
        if copy is not None:
            with ends_may_differ():
                func(same_view(copy, written), *others[1:], **named)
                is_followed = True
        own, named = self._known.ends(args, kwargs, partners=False)
        result = func(written, *own[1:], **named)
        self._memories[id(memory)] = memory
        for value in (memory, written):
            if copy is not None and is_followed:
                self._put(self._known.targets, Pair(value, value, same_view(copy, value)))
            else:
                self._known.lost[id(value)] = value, lost[0] if lost else name_of(func)
        return result

    def _note_views(self, operands: list[Tensor]) -> None:
        """Notes views of what was written into: of those that were made before, or pass torch's functions by."""
        for value in operands:
            memory = memory_of(value)
            if memory is value or id(memory) not in self._memories:
                continue
            pair = self._known.targets.get(id(memory))
            if id(memory) in self._known.lost or pair is None or pair.is_changed() or pair.partners is None:
                self._known.lost[id(value)] = value, self._known.lost.get(id(memory), (value, _FOREIGN))[1]
            elif id(value) not in self._known.targets or self._known.targets[id(value)].is_changed():
                self._put(self._known.targets, Pair(value, value, same_view(pair.partners, value)))

    def _follow(self, func: Callable[..., Any], made: list[Tensor], args: Any, kwargs: dict[str, Any]) -> None:
        others, named = self._known.ends(args, kwargs, partners=True)
        partners: list[Tensor] = []
        with ends_may_differ():
            partners = tensors(func(*others, **named))
        if len(partners) == len(made):
            for value, partner in zip(made, partners, strict=True):
                self._put(self._known.targets, Pair(value, value, partner))
        else:
            self._known.lost.update({id(value): (value, name_of(func)) for value in made})

    def _can_be_mixed(
        self, func: Callable[..., Any], targets: list[Pair], result: Any, args: Any, kwargs: dict[str, Any]
    ) -> bool:
        """Whether a differentiable result of the targets can be interpolated like a loss."""
        is_written = any(target.has_gradient for target in targets)  # into a network's outputs
        return (
            isinstance(result, Tensor)
            and not any(target.is_changed() for target in targets)
            and not takes_in(func, tensors(flat((*args, *kwargs.values()))))
            and (self._can_be_followed(func, args, kwargs) or (is_written and is_repeated(func)))
            and self._keeps_samples(func, targets, args)
            and not is_checkpointed()
        )

    def _by_hand(self, func: Callable[..., Any], result: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        self.by_hand.add(name_of(func))
        if self.minor_weight is None:
            return self._between(result, result, True)
        others, named = self._known.ends(args, kwargs, partners=True)
        with ends_may_differ():
            return self._between(result, func(*others, **named), True)
        self._known.unmixed[id(result)] = result, name_of(func)
        return result

    def _can_be_followed(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
        picks = not self._has_one_weight and _picks(func, args)
        is_followed = is_pure(func, one_weight=self._has_one_weight) and not picks
        return (is_followed or self._is_lookup(func, args, kwargs)) and kwargs.get("out") is None

    def _can_be_repeated(self, func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
        """Whether any function of the targets that nothing is trained by can be applied to their partners."""
        return self._has_one_weight and is_repeated(func) and kwargs.get("out") is None

    @property
    def _has_one_weight(self) -> bool:
        return self.minor_weight is None or not self.minor_weight.ndim

    def _is_lookup(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether targets, as class indices, look values up in a tensor that is the same for both ends."""
        table = table_of(func, args, kwargs)
        if table is None or id(table) in self._known.targets:
            return False
        if self.minor_weight is None or not self.minor_weight.ndim:
            return True
        indices = [value for value in flat((*args, *kwargs.values())) if id(value) in self._known.targets]
        return all(index.dtype not in (torch.bool, torch.uint8) for index in indices)  # these are masks

    # The losses

    def _interpolated(
        self,
        loss: Callable[..., Tensor],
        targets: list[Pair],
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
                own, partners = (self._known.ends(args, kwargs, partners=of_partners) for of_partners in (False, True))
                exact = weight.to(torch.promote_types(weight.dtype, (args[0] if args else kwargs["input"]).dtype))
                total = weighted(loss, 1 - exact, *own) + weighted(loss, weight, *partners)
                self._put(self._known.losses, Pair(total, None, None))
            else:
                total = self._both(loss, args, kwargs)
        except IndexError:
            check_classes(loss, args, kwargs)
            raise
        if total.requires_grad:
            self.values_out.before_loss()
        return total

    def _both(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs a function on each end, and returns the interpolation of the results."""
        pairs = [self._known.losses.get(id(value)) for value in flat((*args, *kwargs.values()))]
        is_by_hand = func not in LOSSES and all(pair.is_by_hand for pair in pairs if pair is not None)
        own, named = self._known.ends(args, kwargs, partners=False)
        one = func(*own, **named)
        if not tensors(one):  # a shape, a number
            return func(*args, **kwargs)
        if self.minor_weight is None:
            other = one
        else:
            others, named = self._known.ends(args, kwargs, partners=True)
            other = None
            with ends_may_differ():
                other = func(*others, **named)
            if other is None:
                self._known.unmixed.update({id(value): (value, name_of(func)) for value in tensors(one)})
                return one
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
        self._put(self._known.losses, Pair(result, one, other, is_by_hand=is_by_hand))
        return result

    # Functions of the losses

    def _of_losses(
        self,
        func: Callable[..., Any],
        losses: list[Pair],
        targets: list[Pair],
        args: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        if any(loss.has_gradient for loss in losses):
            self.values_out.meet(func, args, kwargs)
        changed = any(pair.is_changed() for pair in (*losses, *targets))
        has_ends = not changed and all(loss.own is not None for loss in losses)
        if has_ends and is_repeated(func) and kwargs.get("out") is None and self._keeps_samples(func, losses, args):
            return self._both(func, args, kwargs)
        if changed and func in _DIFFERENTIATING:
            self._refuse(_FOREIGN)
        if writes(func) and args:
            self._forget_views(args[0], name_of(func))
            if has_ends and writes_alike(func) and not any(loss.has_gradient for loss in losses):
                if id(args[0]) in self._known.losses:
                    return self._write_both(func, args, kwargs)
                return self._write(func, targets, [], args, kwargs)
        result = func(*args, **kwargs)
        made = [*tensors(result), *(args[:1] if writes(func) else ())]
        is_followed = not targets and not changed and is_linear(func, [self._has_losses(value) for value in args])
        is_by_hand = all(loss.is_by_hand for loss in losses)
        for value in made:
            self._known.losses.pop(id(value), None)
            if is_followed:
                self._put(self._known.losses, Pair(value, None, None, is_by_hand=is_by_hand))
            else:
                self._known.unmixed[id(value)] = value, _FOREIGN if changed else name_of(func)
        return result

    def _write_both(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs a function that writes into what is made of losses, such as a mask, and into each end of it."""
        written, pair, copies = args[0], self._known.losses[id(args[0])], []
        for of_partners in (False, True):
            ends, named = self._known.ends(args, kwargs, partners=of_partners)
            with ends_may_differ():
                copies.append(ends[0].clone())
                func(copies[-1], *ends[1:], **named)
                continue
            self._known.unmixed[id(written)] = written, name_of(func)
        result = func(*args, **kwargs)
        self._put(self._known.losses, Pair(written, copies[0], copies[1], pair.is_by_hand))
        return result

    def _forget_views(self, written: Tensor, name: str) -> None:
        """Gives up losses that share the memory of one that is written into: they would change, too, without us."""
        pair = self._known.losses.get(id(written))
        if pair is not None and pair.own is not None:
            memory = memory_of(pair.own)
            for other in list(self._known.losses.values()):
                if other is not pair and other.own is not None and memory_of(other.own) is memory:
                    self._known.unmixed[id(other.value)] = other.value, name

    def _keeps_samples(self, func: Callable[..., Any], losses: list[Pair], args: Any) -> bool:
        """Whether the result of a function of losses can be interpolated again by the present weights."""
        if self.minor_weight is None or not self.minor_weight.ndim:
            return True
        if name_of(func) in ("all", "any"):  # which aren't interpolated
            return True
        shape = losses[0].value.shape
        if not is_of_elements(func) or not shape or shape[0] != len(self.minor_weight):
            return False
        shapes = [value.shape for value in args if isinstance(value, Tensor)]
        return bool(torch.broadcast_shapes(*shapes) == shape)  # type: ignore[no-untyped-call]

    def _has_losses(self, value: Any) -> bool:
        return any(id(entry) in self._known.losses for entry in flat((value,)))

    def _of_unmixed(self, func: Callable[..., Any], operands: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        unmixed = [value for value in operands if id(value) in self._known.unmixed]
        name = self._known.unmixed[id(unmixed[0])][1]
        is_compared = func in LOSSES and any(id(value) in self._known.targets for value in operands)
        if func in _DIFFERENTIATING or (is_compared and any(value.requires_grad for value in unmixed)):
            self._refuse(name)
        result = func(*args, **kwargs)
        for value in tensors(result):
            self._known.unmixed[id(value)] = value, name
        return result

    # Ends

    def _refuse(self, name: str) -> None:
        raise SettingError(
            "the loss must be followed from torch's function to what training_step returns with "
            f"{self.technique}, but what {name} makes of it can't be; use another function, or mix in the data module, "
            "which emits probabilities as targets"
        )

    def _put(self, where: dict[int, Pair], pair: Pair) -> None:
        self.trains |= where is self._known.losses and pair.has_gradient and not pair.is_by_hand
        where[id(pair.value)] = pair


def _picks(func: Callable[..., Any], args: Any) -> bool:
    """Whether a function picks entries of a tensor, whose number may depend on the targets."""
    index = args[1:2] if func is Tensor.__getitem__ else ()
    return any(isinstance(entry, Tensor | list) for entry in flat(index))
