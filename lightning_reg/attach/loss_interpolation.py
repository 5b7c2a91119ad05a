"""Losses of mixed targets, computed where somebody else's training step calls a loss function of torch's.

The batch keeps the labels that it has, so that metrics go on working. Where a loss is computed of those very labels, it
is computed of their partners', too, and the two are interpolated: one forward pass, two losses.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn._reduction import legacy_get_string
from torch.overrides import TorchFunctionMode, resolve_name

from lightning_reg.core.wrapping import Handle, around
from lightning_reg.functional.mixing import check_labels, previous
from lightning_reg.settings import SettingError

__all__ = ["LOSSES", "InterpolatedLosses", "leave_compiled_alone"]

LOSSES: tuple[Callable[..., Tensor], ...] = (
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.kl_div,
    F.poisson_nll_loss,
    F.gaussian_nll_loss,
    F.soft_margin_loss,
)
"""Loss functions that are interpolated; torch's modules of the same names call them."""

# Pure functions that don't mix samples: what they make of the targets they make of the partners', too.
_METHODS = """
    long int float double half bfloat16 bool to type type_as cpu cuda clone detach contiguous
    view view_as reshape flatten squeeze unsqueeze expand expand_as repeat_interleave __getitem__
    add sub mul div true_divide neg abs pow square sqrt exp log sign round floor clamp clip sum mean amax amin
    eq ne lt le gt ge logical_not logical_and logical_or where masked_fill nan_to_num isnan isfinite
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __neg__ __pow__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __invert__
"""
_FUNCTIONS = """
    squeeze unsqueeze flatten reshape clone detach add sub mul div true_divide neg abs pow square sqrt exp log sign
    round floor clamp clip sum mean amax amin eq ne lt le gt ge logical_not logical_and logical_or where masked_fill
    nan_to_num isnan isfinite zeros_like ones_like
"""
_FOLLOWED = frozenset(
    (
        *(getattr(Tensor, name) for name in _METHODS.split()),
        *(getattr(torch, name) for name in _FUNCTIONS.split()),
        F.one_hot,
    )
)
# Those that move whole samples: right where all samples have one weight.
_MOVES = frozenset((torch.roll, Tensor.roll, torch.flip, Tensor.flip))


_IGNORED = -100  # what torch takes for a label that doesn't count, where nothing is said


class InterpolatedLosses(TorchFunctionMode):
    r"""While it is entered, losses of a batch's targets become those of the mixed targets.

    .. math:: (1 - w) \, L(y_a) + w \, L(y_b)

    with y_b the targets of the samples before. Where every sample has a weight of its own, each of the two losses is a
    weighted sum over samples, divided by what the loss itself divides by: for a mean, the number of elements, or the
    sum of the class weights of y_a, and of y_b respectively.

    Args:
        targets: y_a, the very tensor that the training step is given.
        minor_weight: w, a scalar or (N,); None where losses are only watched.

    Attributes:
        seen: How many losses were computed of the targets.
        others: Names of other functions that made something differentiable of them, also of what was made of the
            targets by functions that can't be repeated for their partners (those that draw random numbers, write in
            place, pick by tensors, or aren't known).
    """

    def __init__(self, targets: Tensor, minor_weight: Tensor | None) -> None:
        super().__init__()
        self.minor_weight = minor_weight
        self.seen = 0
        self.others: set[str] = set()
        # By number. The tensors are held on to, so that no other gets their number.
        self._partners: dict[int, _Followed] = {}
        self._lost: dict[int, tuple[Tensor, str]] = {}
        self._follow(targets, previous(targets))

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs a function of torch's; twice where it is a loss of the targets."""
        kwargs = kwargs or {}
        operands = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        followed = [self._partners[id(value)] for value in operands if id(value) in self._partners]
        lost = [self._lost[id(value)][1] for value in operands if id(value) in self._lost]
        if not followed and not lost:
            return func(*args, **kwargs)
        if func in LOSSES and not lost:
            return self._interpolated(func, followed, args, kwargs)
        result = func(*args, **kwargs)
        made = [value for value in _flat((result,)) if isinstance(value, Tensor)]
        if any(value.requires_grad for value in made):
            self.others.add(f"{_name(func)} of what {lost[0]} made" if lost else _name(func))
        elif not lost and not any(each.is_changed() for each in followed) and self._can_be_followed(func, args, kwargs):
            if id(result) not in self._partners:
                others, named = self._of_partners(args, kwargs)
                self._follow(result, func(*others, **named))
        else:
            written = args[:1] if func is Tensor.__setitem__ else ()
            for value in (*made, *written):
                if id(value) not in self._partners:
                    self._lost[id(value)] = value, lost[0] if lost else _name(func)
        return result

    def _follow(self, targets: Tensor, partners: Tensor) -> None:
        self._partners[id(targets)] = _Followed(targets, partners, targets._version)

    def _can_be_followed(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
        index = args[1:2] if func is Tensor.__getitem__ else ()
        picks = any(isinstance(each, Tensor | list) for each in _flat(index))
        has_one_weight = self.minor_weight is None or not self.minor_weight.ndim
        is_pure = func in _FOLLOWED or (func in _MOVES and has_one_weight)
        return is_pure and not picks and kwargs.get("out") is None

    def _of_partners(self, args: Any, kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        def partner(value: Any) -> Any:
            return self._partners[id(value)].partners if id(value) in self._partners else value

        return [partner(value) for value in args], {name: partner(value) for name, value in kwargs.items()}

    def _interpolated(
        self, loss: Callable[..., Tensor], followed: list["_Followed"], args: Any, kwargs: dict[str, Any]
    ) -> Tensor:
        if any(each.is_changed() for each in followed):
            raise SettingError(
                "the targets must not be changed in place in training_step with BatchMixing, which wouldn't change "
                "those that are mixed in; make other targets instead: targets = targets.clamp(min=0)"
            )
        self.seen += 1
        try:
            if self.minor_weight is None:
                return loss(*args, **kwargs)
            own = _weighted(loss, 1 - self.minor_weight, args, kwargs)
            return own + _weighted(loss, self.minor_weight, *self._of_partners(args, kwargs))
        except IndexError:
            _check_labels(loss, args, kwargs)
            raise


@dataclass(frozen=True)
class _Followed:
    """Targets, or what was made of them, beside the same made of the partners'."""

    targets: Tensor
    partners: Tensor
    version: int

    def is_changed(self) -> bool:
        """Tells whether the targets were changed in place, which their partners weren't."""
        return self.targets._version != self.version


def _flat(values: Iterable[Any]) -> list[Any]:
    """Returns values, and those in lists and tuples among them."""
    return [each for value in values for each in (value if isinstance(value, list | tuple) else (value,))]


def leave_compiled_alone(module: nn.Module) -> list[Handle]:
    """Steps out of :class:`InterpolatedLosses` while compiled parts of a module run, until the handles are removed.

    Code that torch.compile has made within a mode depends on what the mode holds, and would be made anew for every
    batch. Losses that are computed in compiled code are so not seen.

    Args:
        module: Whose parts may be compiled, in place or by ``torch.compile(part)``.
    """
    handles: list[Handle] = []
    for part in module.modules():
        if part._compiled_call_impl is not None:
            handles.append(around(part, "_compiled_call_impl", _outside))
        elif type(part).__name__ == "OptimizedModule":  # importing it is slow
            handles.append(around(part, "forward", _outside))
    return handles


def _outside(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with ExitStack() as stack:
        while isinstance(torch.overrides._get_current_function_mode(), InterpolatedLosses):  # type: ignore[no-untyped-call]
            stack.enter_context(torch.overrides._pop_mode_temporarily())
        return compiled(*args, **kwargs)


def _weighted(loss: Callable[..., Tensor], share: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """A loss of which each sample counts its share."""
    if kwargs.get("size_average") is not None or kwargs.get("reduce") is not None:  # torch's older words for it
        reduction = legacy_get_string(kwargs.get("size_average"), kwargs.get("reduce"), emit_warning=False)
        kwargs = {**kwargs, "size_average": None, "reduce": None, "reduction": reduction}
    if not share.ndim:
        value = loss(*args, **kwargs)
        return share.to(value.dtype) * value
    reduction = kwargs.get("reduction", "mean")
    each = loss(*args, **{**kwargs, "reduction": "none"})  # (N, ...)
    if not each.ndim or len(each) != len(share):
        raise SettingError(
            f"per_sample must be False where the loss isn't computed of whole samples: the batch has {len(share)}, the "
            f"loss's values have shape {tuple(each.shape)}"
        )
    weighted = share.to(each.dtype).view(-1, *[1] * (each.ndim - 1)) * each
    if reduction == "none":
        return weighted
    return weighted.sum() if reduction == "sum" else weighted.sum() / _divisor(loss, each, args, kwargs)


def _divisor(loss: Callable[..., Tensor], each: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor | int:
    """What a mean divides by."""
    named = _by_name(args, kwargs)
    target: Tensor = named["target"]
    weight: Tensor | None = named.get("weight")
    if kwargs.get("reduction") == "batchmean":
        return len(each)
    if loss in (F.mse_loss, F.l1_loss) and weight is not None:
        return weight.sum()
    if loss not in (F.cross_entropy, F.nll_loss) or target.is_floating_point():
        return each.numel()
    counted = target != named.get("ignore_index", _IGNORED)
    of_classes = 1 if weight is None else weight.gather(0, target.clamp(min=0).flatten()).view_as(target)
    total: Tensor = (of_classes * counted).sum()
    return total


def _check_labels(loss: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]) -> None:
    """Says which sample has a label that is none: torch tells the label alone."""
    named = _by_name(args, kwargs)
    scores, labels = named["input"], named["target"]
    if loss in (F.cross_entropy, F.nll_loss) and not labels.is_floating_point() and scores.ndim > 1:
        check_labels(labels, scores.shape[1], ignored=named.get("ignore_index", _IGNORED))


def _by_name(args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(("input", "target", "weight"), args, strict=False)) | kwargs


def _name(func: Callable[..., Any]) -> str:
    return str(resolve_name(func) or getattr(func, "__name__", func)).rsplit(".", 1)[-1]
