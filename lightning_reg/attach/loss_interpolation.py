"""Losses of mixed targets, computed where somebody else's training step calls a loss function of torch's.

The batch keeps the labels that it has, so that metrics go on working. Where a loss is computed of those very labels, it
is computed of their partners', too, and the two are interpolated: one forward pass, two losses.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn._reduction import legacy_get_string
from torch.overrides import TorchFunctionMode, resolve_name

from lightning_reg.attach.wrapping import Handle, around
from lightning_reg.functional.mixing import previous
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

# What makes another tensor of the targets, sample by sample, without mixing samples.
_METHODS = """
    long int float double half bfloat16 to type type_as cpu cuda clone detach contiguous
    view view_as reshape flatten squeeze unsqueeze expand __getitem__
    add sub mul div __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__
"""
_FUNCTIONS = "squeeze unsqueeze flatten reshape clone detach"
_FOLLOWED = (
    *(getattr(Tensor, name) for name in _METHODS.split()),
    *(getattr(torch, name) for name in _FUNCTIONS.split()),
    F.one_hot,
)


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
        others: Names of other functions that made something differentiable of them.
    """

    def __init__(self, targets: Tensor, minor_weight: Tensor | None) -> None:
        super().__init__()
        self.minor_weight = minor_weight
        self.seen = 0
        self.others: set[str] = set()
        self._count = len(targets)
        # Tensors that are the targets or made of them, beside the same made of the partners', and how often they were
        # changed in place. They are held on to, so that no other tensor gets their number.
        self._partners: dict[int, tuple[Tensor, Tensor, int]] = {}
        self._follow(targets, previous(targets))

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs a function of torch's; twice where it is a loss of the targets."""
        kwargs = kwargs or {}
        followed = [value for value in (*args, *kwargs.values()) if id(value) in self._partners]
        if not followed:
            return func(*args, **kwargs)
        self._refuse_changed(followed)
        if func in LOSSES:
            self.seen += 1
            return self._interpolated(func, args, kwargs)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or id(result) in self._partners:
            return result
        if result.requires_grad:
            self.others.add(_name(func))
        elif _keeps_samples_apart(func, args) and result.ndim and len(result) == self._count:
            others, named = self._of_partners(args, kwargs)
            self._follow(result, func(*others, **named))
        return result

    def _follow(self, targets: Tensor, partners: Tensor) -> None:
        self._partners[id(targets)] = targets, partners, targets._version

    def _refuse_changed(self, followed: list[Tensor]) -> None:
        """Raises where targets were changed in place: their partners were not."""
        for tensor in followed:
            target, _, version = self._partners[id(tensor)]
            if target._version != version:
                raise SettingError(
                    "the targets must not be changed in place in training_step with BatchMixing, which wouldn't change "
                    "those that are mixed in; change a copy: targets = targets.clone()"
                )

    def _of_partners(self, args: Any, kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        def partner(value: Any) -> Any:
            return self._partners[id(value)][1] if id(value) in self._partners else value

        return [partner(value) for value in args], {name: partner(value) for name, value in kwargs.items()}

    def _interpolated(self, loss: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]) -> Tensor:
        if self.minor_weight is None:
            return loss(*args, **kwargs)
        own = _weighted(loss, 1 - self.minor_weight, args, kwargs)
        return own + _weighted(loss, self.minor_weight, *self._of_partners(args, kwargs))


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


def _keeps_samples_apart(func: Callable[..., Any], args: Any) -> bool:
    index = args[1] if func is Tensor.__getitem__ else ()
    picks = any(isinstance(each, Tensor | list) for each in (index if isinstance(index, tuple) else (index,)))
    return func in _FOLLOWED and not picks


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
    weighted = share.to(each.dtype).view(-1, *[1] * (each.ndim - 1)) * each
    if reduction == "none":
        return weighted
    return weighted.sum() if reduction == "sum" else weighted.sum() / _divisor(loss, each, args, kwargs)


def _divisor(loss: Callable[..., Tensor], each: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor | int:
    """What a mean divides by."""
    named = dict(zip(("input", "target", "weight"), args, strict=False)) | kwargs
    target: Tensor = named["target"]
    weight: Tensor | None = named.get("weight")
    if kwargs.get("reduction") == "batchmean":
        return len(each)
    if loss in (F.mse_loss, F.l1_loss) and weight is not None:
        return weight.sum()
    if loss not in (F.cross_entropy, F.nll_loss) or target.is_floating_point():
        return each.numel()
    counted = target != named.get("ignore_index", -100)
    of_classes = 1 if weight is None else weight.gather(0, target.clamp(min=0).flatten()).view_as(target)
    total: Tensor = (of_classes * counted).sum()
    return total


def _name(func: Callable[..., Any]) -> str:
    return str(resolve_name(func) or getattr(func, "__name__", func)).rsplit(".", 1)[-1]
