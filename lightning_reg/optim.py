"""Parameter groups: what weight decay applies to."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

__all__ = ["OwnedParameter", "is_normalization", "owned_parameters", "weight_decay_groups"]

_TORCH_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class OwnedParameter:
    """A parameter and the places it is used in.

    Attributes:
        name: Its qualified name, the first one where it has several.
        parameter: The parameter.
        owners: Every module that holds it, with its name there; more than one where weights are tied.
    """

    name: str
    parameter: nn.Parameter
    owners: list[tuple[str, nn.Module]]

    @property
    def is_norm_or_bias(self) -> bool:
        """Whether it shifts or scales activations rather than mixing them: what decay and penalties spare."""
        return any(
            re.search(r"(^|_)bias(_|$)", name) is not None or is_normalization(owner) or isinstance(owner, nn.PReLU)
            for name, owner in self.owners
        )

    @property
    def is_embedding(self) -> bool:
        """Whether rows of it are looked up, also where it is tied to an output layer."""
        return any(isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) for _, owner in self.owners)


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
    own = module.parameters(recurse=False)
    return named and all(sum(size > 1 for size in parameter.shape) <= 1 for parameter in own)


def owned_parameters(module: nn.Module) -> list[OwnedParameter]:
    """Returns every parameter once, with all the modules that hold it.

    Args:
        module: Whose parameters.

    >>> attention = nn.MultiheadAttention(8, 2)
    >>> [each.name for each in owned_parameters(attention) if each.is_norm_or_bias]
    ['in_proj_bias', 'out_proj.bias']
    """
    found: dict[nn.Parameter, OwnedParameter] = {}
    for prefix, holder in module.named_modules(remove_duplicate=False):
        for leaf, parameter in holder.named_parameters(recurse=False):
            owner, name = holder, leaf
            if isinstance(holder, ParametrizationList):
                # A parametrized weight lies in "layer.parametrizations.weight.original"; its owner is the layer.
                path, _, name = f".{prefix}".rpartition(".parametrizations.")
                owner = module.get_submodule(path.removeprefix("."))
            qualified = f"{prefix}.{leaf}" if prefix else leaf
            found.setdefault(parameter, OwnedParameter(qualified, parameter, [])).owners.append((name, owner))
    return list(found.values())


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
    for each in owned_parameters(module):
        if each.parameter.requires_grad:
            group = no_decay if each.is_norm_or_bias or each.is_embedding else decay
            group["params"].append(each.parameter)
    return [group for group in (decay, no_decay) if group["params"]]
