"""The torch functions whose results on targets and on losses can be followed."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "is_check",
    "is_linear",
    "is_of_elements",
    "is_pure",
    "is_repeated",
    "returns_number",
    "table_of",
    "takes_out",
    "writes",
]

# Pure functions that don't mix samples: applied to the targets, they can be applied to the partners', too.
_METHODS = """
    long int float double half bfloat16 bool to type type_as cpu cuda clone detach contiguous
    view view_as reshape flatten squeeze unsqueeze expand expand_as repeat_interleave __getitem__
    add sub mul div true_divide neg abs pow square sqrt exp log sign round floor clamp clip sum mean amax amin
    eq ne lt le gt ge logical_not logical_and logical_or where masked_fill nan_to_num isnan isfinite isinf any all
    max min unique bincount unbind
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __neg__ __pow__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __invert__
"""
_FUNCTIONS = """
    squeeze unsqueeze flatten reshape clone detach add sub mul div true_divide neg abs pow square sqrt exp log sign
    round floor clamp clip sum mean amax amin eq ne lt le gt ge logical_not logical_and logical_or where masked_fill
    nan_to_num isnan isfinite isinf any all max min unique bincount unbind zeros_like ones_like
"""
_FOLLOWED = frozenset(
    (
        *(getattr(Tensor, name) for name in _METHODS.split()),
        *(getattr(torch, name) for name in _FUNCTIONS.split()),
        F.one_hot,
    )
)
# Functions that look values up in a tensor, their first argument, by indices.
_LOOKUPS = frozenset(
    (
        *(torch.gather, torch.index_select, torch.take, torch.take_along_dim),
        *(Tensor.gather, Tensor.index_select, Tensor.take, Tensor.take_along_dim, Tensor.__getitem__),
    )
)
# Functions that move whole samples: correct if all samples have one weight.
_MOVES = frozenset((torch.roll, Tensor.roll, torch.flip, Tensor.flip))

# If each sample has its own weight, or something is written in place, only linear functions can be followed: they
# commute with interpolation. Sums may have several losses, products one.
_SUMS = """
    add sub rsub add_ sub_ copy_ stack cat __add__ __radd__ __sub__ __rsub__ __iadd__ __isub__
"""
_PRODUCTS = """
    mul mul_ __mul__ __rmul__ __imul__ __setitem__
"""
_OF_THE_FIRST = """
    div true_divide div_ __truediv__ __itruediv__ neg negative __neg__ sum mean detach clone contiguous cpu cuda to
    type_as float double half bfloat16 view view_as reshape flatten squeeze unsqueeze expand expand_as __getitem__
    __get__ grad
"""
# Elementwise functions.
_OF_ELEMENTS = """
    add sub rsub mul div true_divide neg negative pow square sqrt rsqrt exp expm1 log log1p abs sigmoid tanh relu clamp
    clip clamp_min clamp_max softplus where masked_fill nan_to_num detach clone contiguous to type_as float double half
    bfloat16 eq ne lt le gt ge isnan isfinite __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__
    __rtruediv__ __neg__ __pow__ __rpow__ __abs__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__
"""
_IN_PLACE = """
    __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__ __setitem__
"""
# Functions with side effects, or that draw random numbers.
_NOT_REPEATED = """
    __set__ __delete__ backward grad register_hook register_post_accumulate_grad_hook retain_grad record_stream
    batch_norm instance_norm dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d bernoulli
    multinomial poisson normal rrelu gumbel_softmax rand_like randn_like randint_like
"""
# Functions that return numbers, lists and arrays, which can't be followed.
_NUMBERS = """
    item __bool__ __int__ __float__ __index__ is_nonzero
"""
_OUT_OF_TORCH = """
    tolist numpy __array__ __dlpack__ __complex__ __contains__ equal allclose
"""
# What isn't finite isn't for either end, and constants, which metrics check as well, are the same.
_CHECKS = "isnan isinf isfinite isposinf isneginf ones_like zeros_like"
_SUMS_OF, _PRODUCTS_OF, _FIRST_OF, _ELEMENTS_OF, _WRITING, _ONCE, _NUMBER, _OUT, _CHECKING = (
    frozenset(names.split())
    for names in (
        _SUMS,
        _PRODUCTS,
        _OF_THE_FIRST,
        _OF_ELEMENTS,
        _IN_PLACE,
        _NOT_REPEATED,
        _NUMBERS,
        _OUT_OF_TORCH,
        _CHECKS,
    )
)


def is_pure(func: Callable[..., Any], *, one_weight: bool) -> bool:
    """Whether a function of the targets can be applied to those of their partners, too.

    Args:
        one_weight: Whether all samples have the same weight, so that samples may be moved.
    """
    return func in _FOLLOWED or (one_weight and func in _MOVES)


def table_of(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """Returns the tensor that a function looks values up in by indices; None for other functions."""
    table: Tensor | None = None
    if func is F.embedding:
        table = args[1] if len(args) > 1 else kwargs["weight"]
    elif func in _LOOKUPS:
        table = args[0] if args else kwargs["input"]
    return table


def writes(func: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument."""
    name = _name(func)
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


def is_repeated(func: Callable[..., Any]) -> bool:
    """Whether a function may be called several times instead of once."""
    return not writes(func) and _name(func) not in _ONCE


def is_of_elements(func: Callable[..., Any]) -> bool:
    """Whether a function is elementwise."""
    return _name(func) in _ELEMENTS_OF


def takes_out(func: Callable[..., Any]) -> bool:
    """Whether a function returns values that aren't torch's: a number, a list, an array."""
    return _name(func) in _OUT or returns_number(func)


def returns_number(func: Callable[..., Any]) -> bool:
    """Whether a function of a tensor with a single element returns that as a number."""
    return _name(func) in _NUMBER


def is_check(name: str) -> bool:
    """Whether a condition on the results of a function of this name holds for both ends or for neither."""
    return name in _CHECKING


def is_linear(func: Callable[..., Any], losses: list[bool]) -> bool:
    """Whether a function is linear in those of its arguments that are losses.

    Args:
        losses: For each argument, whether it is a loss.
    """
    name = _name(func)
    if name in _FIRST_OF:
        return not any(losses[1:])
    return name in _SUMS_OF or (name in _PRODUCTS_OF and sum(losses) <= 1)


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", "")
