"""Parameter groups: what weight decay applies to."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from lightning_reg.settings import SettingError, check_range, near_matches
from lightning_reg.text import table

__all__ = ["OwnedParameter", "is_normalization", "owned_parameters", "weight_decay_groups", "weight_decay_table"]

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


def weight_decay_groups(
    module: nn.Module, weight_decay: float | None = None, *, exclude: Sequence[str] = (), verbose: bool = False
) -> list[dict[str, Any]]:
    """Splits parameters into those that weight decay applies to and those it would only harm.

    Biases, embeddings and the scales and shifts of normalization layers are left out: they are few, they can't
    overfit much, and pulling a scale or an embedding of a rare word toward zero costs accuracy.

    Args:
        module: Whose parameters; frozen ones are left out.
        weight_decay: Strength for the decayed group, at least 0; where None, the optimizer's own ``weight_decay``
            applies.
        exclude: Globs over parameter names that aren't decayed either.
        verbose: Whether to print the table of :func:`weight_decay_table`.

    Raises:
        SettingError: If ``weight_decay`` is negative or not finite, or a glob matches nothing.

    Returns:
        One or two groups for a torch optimizer, named ``decay`` and ``no_decay``.

    Reference:
        Ilya Loshchilov, Frank Hutter: Decoupled Weight Decay Regularization, ICLR 2019, arXiv:1711.05101.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    >>> [(group["name"], len(group["params"])) for group in weight_decay_groups(network)]
    [('decay', 1), ('no_decay', 3)]
    """
    if weight_decay is not None:
        check_range("weight_decay", weight_decay, low=0)
    parameters = owned_parameters(module)
    for pattern in exclude:
        names = [each.name for each in parameters]
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = near_matches(pattern, names) or names[:8]
            raise SettingError(f"exclude pattern {pattern!r} matches no parameter; there are {', '.join(near)}")
    decay: dict[str, Any] = {"name": "decay", "params": []}
    no_decay: dict[str, Any] = {"name": "no_decay", "params": [], "weight_decay": 0.0}
    if weight_decay is not None:
        decay["weight_decay"] = weight_decay
    for each in parameters:
        if each.parameter.requires_grad:
            group = no_decay if _why_spared(each, exclude) else decay
            group["params"].append(each.parameter)
    if verbose:
        print(weight_decay_table(module, exclude=exclude))  # noqa: T201
    return [group for group in (decay, no_decay) if group["params"]]


def weight_decay_table(module: nn.Module, *, exclude: Sequence[str] = ()) -> str:
    """Returns a table of every parameter, and whether :func:`weight_decay_groups` decays it, or why not.

    Args:
        module: Whose parameters.
        exclude: Globs over parameter names that aren't decayed.

    >>> print(weight_decay_table(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))))
    parameter  shape   weight decay
    0.weight   (5, 4)  no: embedding
    1.weight   (2, 4)  yes
    1.bias     (2,)    no: norm or bias
    8 of 30 weights are decayed
    """
    rows = [("parameter", "shape", "weight decay")]
    decayed = total = 0
    for each in owned_parameters(module):
        why = "frozen" if not each.parameter.requires_grad else _why_spared(each, exclude)
        rows.append((each.name, str(tuple(each.parameter.shape)), f"no: {why}" if why else "yes"))
        total += each.parameter.numel()
        decayed += 0 if why else each.parameter.numel()
    return "\n".join([*table(rows), f"{decayed:,} of {total:,} weights are decayed"])


def _why_spared(owned: OwnedParameter, exclude: Sequence[str]) -> str:
    if owned.is_norm_or_bias:
        return "norm or bias"
    if owned.is_embedding:
        return "embedding"
    return "excluded" if any(fnmatch.fnmatchcase(owned.name, pattern) for pattern in exclude) else ""
