"""Parameter groups: what weight decay applies to."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["is_norm_or_bias", "is_normalization", "named_parameters_with_owner", "weight_decay_groups"]

_TORCH_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def is_normalization(module: nn.Module) -> bool:
    """Whether a module normalizes activations, torch's own or anybody's.

    Args:
        module: That is asked about, without those below it.

    >>> is_normalization(nn.BatchNorm2d(4)), is_normalization(nn.Linear(4, 4))
    (True, False)
    """
    if isinstance(module, _TORCH_NORMS):
        return True
    # Every model library brings RMSNorms and LayerNorms of its own that share no base class: known by their name, but
    # not where they hold a matrix, as a fused "LayerNormLinear" does.
    named = any("norm" in kind.__name__.lower() for kind in type(module).__mro__)
    return named and all(parameter.ndim <= 1 for parameter in module.parameters(recurse=False))


def is_norm_or_bias(name: str, owner: nn.Module) -> bool:
    """Whether a parameter shifts or scales activations rather than mixing them: what decay and penalties spare.

    Args:
        name: Of the parameter, qualified or not.
        owner: The module that holds it.

    >>> attention = nn.MultiheadAttention(8, 2)
    >>> is_norm_or_bias("in_proj_bias", attention), is_norm_or_bias("in_proj_weight", attention)
    (True, False)
    """
    named_bias = re.search(r"(^|_)bias(_|$)", name.rpartition(".")[2]) is not None
    return named_bias or is_normalization(owner) or isinstance(owner, nn.PReLU)


def named_parameters_with_owner(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Yields every parameter once, with its qualified name and the module that holds it.

    Args:
        module: Whose parameters; tied ones come under their first name.
    """
    seen: set[nn.Parameter] = set()
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                yield (f"{prefix}.{name}" if prefix else name), parameter, owner


def weight_decay_groups(module: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Splits parameters into those that weight decay applies to and those it would only harm.

    Biases, embeddings and the scales and shifts of normalization layers are left out: they are few, they can't
    overfit much, and pulling a scale or an embedding of a rare word toward zero costs accuracy.

    Args:
        module: Whose parameters; frozen ones are left out.
        weight_decay: Strength for the decayed group; where None, the optimizer's own ``weight_decay`` applies.

    Returns:
        One or two groups for a torch optimizer, named ``decay`` and ``no_decay``.

    Reference:
        Ilya Loshchilov, Frank Hutter: Decoupled Weight Decay Regularization, ICLR 2019, arXiv:1711.05101.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    >>> [(group["name"], len(group["params"])) for group in weight_decay_groups(network)]
    [('decay', 1), ('no_decay', 3)]
    """
    decay: dict[str, Any] = {"name": "decay", "params": []}
    no_decay: dict[str, Any] = {"name": "no_decay", "params": [], "weight_decay": 0.0}
    if weight_decay is not None:
        decay["weight_decay"] = weight_decay
    for name, parameter, owner in named_parameters_with_owner(module):
        if not parameter.requires_grad:
            continue
        spared = is_norm_or_bias(name, owner) or isinstance(owner, (nn.Embedding, nn.EmbeddingBag))
        (no_decay if spared else decay)["params"].append(parameter)
    return [group for group in (decay, no_decay) if group["params"]]
