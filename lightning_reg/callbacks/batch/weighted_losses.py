"""torch's losses with a weight for each sample."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from lightning_reg.functional.batch.mixing import check_labels
from lightning_reg.settings import SettingError

__all__ = ["LOSSES", "check_classes", "counts_in_mean", "settings_of", "weighted"]

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

IGNORED = -100  # torch's default for the label to ignore


def settings_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns a loss's keyword arguments with ``reduction`` in place of the deprecated ones."""
    if kwargs.get("size_average") is None and kwargs.get("reduce") is None:
        return kwargs
    reduction = legacy_get_string(kwargs.get("size_average"), kwargs.get("reduce"), emit_warning=False)
    return {**kwargs, "size_average": None, "reduce": None, "reduction": reduction}


def weighted(loss: Callable[..., Tensor], share: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Returns a loss's sum or mean over samples, weighted by sample.

    Args:
        loss: One of :data:`LOSSES`.
        share: Weights of the samples, (N,).
        args: Positional arguments of the loss.
        kwargs: Keyword arguments of the loss, as :func:`settings_of` returns them.

    Raises:
        SettingError: If the loss has no value for each sample.
    """
    values = loss(*args, **{**kwargs, "reduction": "none"})  # (N, ...)
    if not values.ndim or len(values) != len(share):
        raise SettingError(
            f"per_sample must be False where the loss isn't computed of whole samples: the batch has {len(share)}, the "
            f"loss's values have shape {tuple(values.shape)}"
        )
    total = (share.to(values.dtype).view(-1, *[1] * (values.ndim - 1)) * values).sum()
    return total if kwargs.get("reduction") == "sum" else total / _divisor(loss, values, args, kwargs)


def _divisor(loss: Callable[..., Tensor], values: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor | int:
    """Returns the divisor of the loss's mean."""
    named = _by_name(args, kwargs)
    target: Tensor = named["target"]
    weight: Tensor | None = named.get("weight")
    if kwargs.get("reduction") == "batchmean":
        return len(values)
    if loss in (F.mse_loss, F.l1_loss) and weight is not None:
        return weight.sum()
    if loss not in (F.cross_entropy, F.nll_loss) or target.is_floating_point():
        return values.numel()
    return counts_in_mean(loss, values, args, kwargs).sum()


def counts_in_mean(loss: Callable[..., Tensor], values: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Returns how much each value of a loss counts in its mean: 0 where it is ignored, else 1 or its class's weight.

    Args:
        loss: One of :data:`LOSSES`.
        values: Values of the loss with ``reduction="none"``, (N, ...).
        args: Positional arguments of the loss.
        kwargs: Keyword arguments of the loss.
    """
    named = _by_name(args, kwargs)
    target: Tensor = named["target"]
    weight: Tensor | None = named.get("weight")
    if loss not in (F.cross_entropy, F.nll_loss) or target.is_floating_point():
        return torch.ones_like(values)
    counted = target != named.get("ignore_index", IGNORED)
    of_classes = 1 if weight is None else weight.gather(0, torch.where(counted, target, 0).flatten()).view_as(target)
    counts: Tensor = of_classes * counted
    return counts


def check_classes(loss: Callable[..., Tensor], args: Any, kwargs: dict[str, Any]) -> None:
    """Raises if a label is out of range, naming its first sample; torch names only the label."""
    named = _by_name(args, kwargs)
    scores, labels = named["input"], named["target"]
    if loss in (F.cross_entropy, F.nll_loss) and not labels.is_floating_point() and scores.ndim > 1:
        check_labels(labels, scores.shape[1], ignored=named.get("ignore_index", IGNORED))


def _by_name(args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(("input", "target", "weight"), args, strict=False)) | kwargs
