"""The torch functions whose results on targets and on losses can be followed."""

from collections.abc import Callable, Iterable
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
    "takes_in",
    "takes_out",
    "writes",
    "writes_alike",
]

# Pure functions that don't move samples: applied to the targets, they can be applied to the partners', too.
_METHODS = """
    long int float double half bfloat16 bool to type type_as cpu cuda clone detach contiguous
    view view_as reshape flatten squeeze unsqueeze expand expand_as repeat_interleave __getitem__
    add sub mul div true_divide neg abs pow square sqrt exp log sign round floor clamp clip sum mean amax amin
    eq ne lt le gt ge logical_not logical_and logical_or where masked_fill nan_to_num isnan isfinite isinf any all
    max min unique bincount unbind nonzero histc std var norm cumsum log1p sigmoid maximum minimum lerp addcmul
    remainder new_zeros new_ones new_full new_empty
    scatter scatter_add scatter_reduce index_put index_fill index_add index_copy masked_scatter
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __neg__ __pow__ __rpow__ __mod__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __xor__ __invert__
"""
_FUNCTIONS = """
    squeeze unsqueeze flatten reshape clone detach add sub mul div true_divide neg abs pow square sqrt exp log sign
    round floor clamp clip sum mean amax amin eq ne lt le gt ge logical_not logical_and logical_or where masked_fill
    nan_to_num isnan isfinite isinf any all max min unique bincount unbind zeros_like ones_like
    full_like empty_like nonzero histc std var norm cumsum log1p sigmoid maximum minimum lerp addcmul remainder cdist
    scatter scatter_add scatter_reduce index_put index_fill index_add index_copy masked_scatter
"""
_COMPARISONS = """
    cosine_similarity pairwise_distance hinge_embedding_loss margin_ranking_loss cosine_embedding_loss multi_margin_loss
    multilabel_margin_loss multilabel_soft_margin_loss
"""
_FOLLOWED = frozenset(
    (
        *(getattr(Tensor, name) for name in _METHODS.split()),
        *(getattr(torch, name) for name in _FUNCTIONS.split()),
        *(getattr(F, name) for name in _COMPARISONS.split()),
        *(Tensor.data.__get__, F.one_hot),  # type: ignore[attr-defined]
    )
)
# Functions that look values up in a tensor, their first argument, by indices.
_LOOKUPS = frozenset(
    (
        *(torch.gather, torch.index_select, torch.take, torch.take_along_dim, torch.masked_select),
        *(Tensor.gather, Tensor.index_select, Tensor.take, Tensor.take_along_dim, Tensor.masked_select),
        Tensor.__getitem__,
    )
)
# Functions that may move whole samples: correct if all samples have one weight.
_MOVES = """
    roll flip t transpose swapaxes permute movedim chunk split tensor_split matmul mm bmm mv dot
"""
_JOINS = (torch.stack, torch.cat, torch.concat, torch.hstack, torch.vstack)
_MOVING = frozenset(
    (
        *(getattr(where, name) for where in (torch, Tensor) for name in _MOVES.split()),
        *(Tensor.T.__get__, Tensor.mT.__get__),  # type: ignore[attr-defined]
        *(Tensor.__matmul__, Tensor.__rmatmul__, torch.einsum, *_JOINS),
    )
)

# If each sample has its own weight, or something is written in place, only linear functions can be followed: they
# commute with interpolation. Sums may have several losses, products one.
_SUMS = """
    add sub rsub add_ sub_ copy_ stack cat __add__ __radd__ __sub__ __rsub__ __iadd__ __isub__
"""
_PRODUCTS = """
    mul mul_ __mul__ __rmul__ __imul__
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
# Those of them, and others, that write the same for the same arguments.
_WRITTEN_ALIKE = """
    __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__ __setitem__
    add_ sub_ mul_ div_ true_divide_ neg_ abs_ pow_ square_ sqrt_ exp_ log_ sign_ round_ floor_ clamp_ clip_ clamp_min_
    clamp_max_ eq_ ne_ lt_ le_ gt_ ge_ logical_not_ logical_and_ logical_or_ nan_to_num_ copy_ fill_ zero_ masked_fill_
    masked_scatter_ scatter_ scatter_add_ scatter_reduce_ index_put_ index_fill_ index_add_ index_copy_ put_
    fill_diagonal_ requires_grad_
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
# Functions in which a network's weights may meet labels.
_MATRICES = "matmul mm bmm mv dot einsum __matmul__ __rmatmul__"
# What isn't finite isn't for either end, and constants, which metrics check as well, are the same.
_CHECKS = "isnan isinf isfinite isposinf isneginf ones_like zeros_like"
_SUMS_OF, _PRODUCTS_OF, _FIRST_OF, _ELEMENTS_OF, _WRITING, _ALIKE, _ONCE, _NUMBER, _OUT, _CHECKING, _MATRIX = (
    frozenset(names.split())
    for names in (
        _SUMS,
        _PRODUCTS,
        _OF_THE_FIRST,
        _OF_ELEMENTS,
        _IN_PLACE,
        _WRITTEN_ALIKE,
        _NOT_REPEATED,
        _NUMBERS,
        _OUT_OF_TORCH,
        _CHECKS,
        _MATRICES,
    )
)


def is_pure(func: Callable[..., Any], *, one_weight: bool) -> bool:
    """Whether a function of the targets can be applied to those of their partners, too.

    Args:
        one_weight: Whether all samples have the same weight, so that samples may be moved.
    """
    return func in _FOLLOWED or (one_weight and func in _MOVING)


def table_of(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """Returns the tensor that a function looks values up in by indices; None for other functions."""
    table: Tensor | None = None
    if func is F.embedding:
        table = args[1] if len(args) > 1 else kwargs["weight"]
    elif func in _LOOKUPS:
        table = args[0] if args else kwargs["input"]
    return table


def takes_in(func: Callable[..., Any], operands: Iterable[Tensor]) -> bool:
    """Whether a network may take a function's result in, rather than that it is compared with a network's outputs."""
    has_weights = any(value.requires_grad and value.is_leaf for value in operands)
    return func is F.embedding or func in _JOINS or (has_weights and _name(func) in _MATRIX)


def writes(func: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument."""
    name = _name(func)
    return name in _WRITING or (name.endswith("_") and not name.endswith("__"))


def writes_alike(func: Callable[..., Any]) -> bool:
    """Whether a function that changes its first argument can change a copy of that alike."""
    return _name(func) in _ALIKE


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
    if name == "__setitem__":
        return not losses[1]  # the index
    if name in _FIRST_OF:
        return not any(losses[1:])
    return name in _SUMS_OF or (name in _PRODUCTS_OF and sum(losses) <= 1)


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", "")
