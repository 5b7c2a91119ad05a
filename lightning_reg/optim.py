"""Parameter groups for weight decay and layer-wise learning rates."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from lightning_reg.settings import SettingError, as_patterns, check_range, near_matches
from lightning_reg.text import table

__all__ = [
    "OwnedParameter",
    "is_normalization",
    "layer_decay_groups",
    "owned_parameters",
    "weight_decay_groups",
    "weight_decay_table",
]

_TORCH_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_MIXING = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)
# "Norm" or "Normalization" as a word: neither "NormedLinear" nor "NormalRegression" normalizes anything.
_NORM = re.compile(r"([Nn]orm|NORM)(alization)?(?![a-z])")
# What timm excludes by name: shifts, tokens and positions that are added, and scales. Of the general names of scales
# (BERT's beta, Flax's scale, temperatures of attention and of contrastive losses) only those with no other word count;
# ls1 and ls2 are ResMLP's layer scales.
_SHIFT = re.compile(
    r"(^|_)(bias|biases|(cls|class|dist|distill|reg|register|storage|mask)_tokens?|class_embedding|"
    r"(pos|position|positional)_(emb|embed|embedding)s?)(_|\d|$)"
)
_SCALE = re.compile(
    r"(^|_)(gamma|layer_scale|layerscale|logit_scale)s?(_|\d|$)|^(beta|scale|temperature)s?(_?\d+)?$|^ls_?\d+$"
)
_NUMBERED = re.compile(r"(?P<stem>(?:.*?\.)??[a-zA-Z_]*\.?)(?P<block>\d+)\.")


@dataclass(frozen=True)
class OwnedParameter:
    """A parameter and the modules that hold it.

    Attributes:
        name: Qualified name, the first one where it has several.
        parameter: The parameter itself, not a copy.
        owners: Every module that holds it, with its name there; several where weights are tied.
        is_declared: Whether a module above it names it in ``no_weight_decay()``, as timm's models do, or it has a true
            ``_no_weight_decay`` itself, as in S4 and Mamba.
    """

    name: str
    parameter: nn.Parameter
    owners: list[tuple[str, nn.Module]]
    is_declared: bool = False

    @property
    def is_norm_or_bias(self) -> bool:
        """Whether it shifts or scales activations rather than mixing them; decay and penalties skip such parameters."""
        return self.is_declared or any(self._shifts_or_scales(name, owner) for name, owner in self.owners)

    def _shifts_or_scales(self, name: str, owner: nn.Module) -> bool:
        is_vector = sum(size > 1 for size in self.parameter.shape) <= 1
        scales = _SCALE.search(name) is not None or "LayerScale" in type(owner).__name__
        return (
            _SHIFT.search(name) is not None
            or (scales and is_vector)
            or is_normalization(owner)
            or isinstance(owner, nn.PReLU)
        )

    @property
    def is_norm(self) -> bool:
        """Whether it belongs to a normalization layer."""
        return any(is_normalization(owner) for _, owner in self.owners)

    @property
    def is_embedding(self) -> bool:
        """Whether its rows are looked up, even if it is tied to an output layer."""
        return any(isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) for _, owner in self.owners)


def is_normalization(module: nn.Module) -> bool:
    """Whether a module normalizes activations, be it torch's or another library's.

    Args:
        module: The module to check; its submodules don't count.

    >>> is_normalization(nn.BatchNorm2d(4)), is_normalization(nn.Linear(4, 4))
    (True, False)
    """
    if isinstance(module, _TORCH_NORMS):
        return True
    # Every model library has its own RMSNorms and LayerNorms, without a common base class: recognized by name, but
    # not where they hold a matrix, as a fused "LayerNormLinear" does.
    named = not isinstance(module, _MIXING) and any(_NORM.search(kind.__name__) for kind in type(module).__mro__)
    own = module.parameters(recurse=False)
    return named and all(sum(size > 1 for size in parameter.shape) <= 1 for parameter in own)


def owned_parameters(module: nn.Module) -> list[OwnedParameter]:
    """Returns every parameter once, with all the modules that hold it.

    Args:
        module: Module whose parameters are listed.

    >>> attention = nn.MultiheadAttention(8, 2)
    >>> [owned.name for owned in owned_parameters(attention) if owned.is_norm_or_bias]
    ['in_proj_bias', 'out_proj.bias']
    """
    found: dict[nn.Parameter, OwnedParameter] = {}
    declared = _declared(module)
    for prefix, holder in module.named_modules(remove_duplicate=False):
        for leaf, parameter in holder.named_parameters(recurse=False):
            owner, name = holder, leaf
            if isinstance(holder, ParametrizationList):
                # A parametrized weight lies in "layer.parametrizations.weight.original"; its owner is the layer.
                path, _, name = f".{prefix}".rpartition(".parametrizations.")
                owner = module.get_submodule(path.removeprefix("."))
            qualified = f"{prefix}.{leaf}" if prefix else leaf
            is_declared = parameter in declared or bool(getattr(parameter, "_no_weight_decay", False))
            owned = found.setdefault(parameter, OwnedParameter(qualified, parameter, [], is_declared=is_declared))
            owned.owners.append((name, owner))
            if isinstance(holder, (nn.ParameterList, nn.ParameterDict)):  # what it is shows in the name of the list
                owned.owners.append((prefix.rpartition(".")[2], owner))
    return list(found.values())


def _declared(module: nn.Module) -> set[nn.Parameter]:
    """Returns the parameters that modules name in ``no_weight_decay()``, relative to themselves."""
    declared: set[nn.Parameter] = set()
    for holder in module.modules():
        declare = getattr(holder, "no_weight_decay", None)
        if callable(declare):
            names = set(declare())
            declared.update(parameter for name, parameter in holder.named_parameters() if name in names)
    return declared


def weight_decay_groups(
    module: nn.Module, weight_decay: float | None = None, *, exclude: str | Sequence[str] = (), verbose: bool = False
) -> list[dict[str, Any]]:
    """Splits parameters into those that weight decay applies to and those it would only harm.

    Biases, embeddings, the scales and shifts of normalization layers, and what timm spares by name are left out
    (``cls_token``, ``pos_embed``, ``gamma``, ``logit_scale``, ...): they are few, they can't overfit much, and pulling
    a scale or an embedding of a rare word toward zero costs accuracy. A module may name more of its parameters in a
    method ``no_weight_decay()``, or set ``_no_weight_decay`` to True on them.

    Args:
        module: Module whose parameters are grouped; frozen ones are left out.
        weight_decay: Strength for the decayed group, at least 0; where None, the optimizer's own ``weight_decay``
            applies.
        exclude: Globs over parameter names that aren't decayed either, or a single one.
        verbose: Whether to print the table of :func:`weight_decay_table`.

    Returns:
        One or two groups for a torch optimizer, named ``decay`` and ``no_decay``.

    Raises:
        SettingError: If ``weight_decay`` is negative or not finite, a glob matches nothing, or the module is lazy and
            has not run yet.

    Reference:
        Ilya Loshchilov, Frank Hutter: Decoupled Weight Decay Regularization, ICLR 2019, arXiv:1711.05101.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    >>> [(group["name"], len(group["params"])) for group in weight_decay_groups(network)]
    [('decay', 1), ('no_decay', 3)]
    """
    if weight_decay is not None:
        check_range("weight_decay", weight_decay, low=0)
    exclude = as_patterns("exclude", exclude)
    parameters = _shaped_parameters(module)
    names = [owned.name for owned in parameters]
    for pattern in exclude:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = near_matches(pattern, names) or names[:8]
            raise SettingError(f"exclude pattern {pattern!r} matches no parameter; there are {', '.join(near)}")
    decay: dict[str, Any] = {"name": "decay", "params": []}
    no_decay: dict[str, Any] = {"name": "no_decay", "params": [], "weight_decay": 0.0}
    if weight_decay is not None:
        decay["weight_decay"] = weight_decay
    for owned in parameters:
        if owned.parameter.requires_grad:
            group = no_decay if _why_spared(owned, exclude) else decay
            group["params"].append(owned.parameter)
    if verbose:
        print(weight_decay_table(module, exclude=exclude))  # noqa: T201
    return [group for group in (decay, no_decay) if group["params"]]


def layer_decay_groups(
    module: nn.Module,
    decay: float,
    *,
    lr: float,
    weight_decay: float | None = None,
    exclude: str | Sequence[str] = (),
    verbose: bool = False,
) -> list[dict[str, Any]]:
    r"""Gives layers near the input a smaller learning rate than those near the output, for fine-tuning.

    .. math:: \eta_d = \eta \, \gamma^{D - d}

    The depth d counts the blocks of the deepest sequence of numbered modules of one type (``blocks.0``, ``layer1``,
    ``encoder.layers.3``, as model libraries name them); what is defined before the first block has depth 0, what is
    defined after the last one has the full rate, d = D. Where nothing is numbered, every direct child that has
    parameters is a layer of its own, and the module's own parameters belong to the first.

    Args:
        module: Module whose parameters are grouped; frozen ones are left out.
        decay: Factor γ from one layer to the one before it, in (0, 1]; 0.65 to 0.9 is usual for transformers.
        lr: Learning rate η of the last layer, at least 0.
        weight_decay: Strength of weight decay, as for :func:`weight_decay_groups`, which decides what is decayed.
        exclude: Globs over parameter names that aren't decayed either, or a single one.
        verbose: Whether to print a table of depth, learning rate and parameters.

    Returns:
        Groups for a torch optimizer, at most two for each layer: ``depth_0_decay``, ``depth_0_no_decay`` and so on.

    Raises:
        SettingError: If a number is out of range, a glob matches nothing, or the module is lazy and has not run yet.

    Reference:
        Kevin Clark, Minh-Thang Luong, Quoc V. Le, Christopher D. Manning: ELECTRA: Pre-training Text Encoders as
        Discriminators Rather Than Generators, ICLR 2020, arXiv:2003.10555.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> groups = layer_decay_groups(network, 0.5, lr=0.1)
    >>> [(group["name"], group["lr"]) for group in groups][::2]
    [('depth_0_decay', 0.025), ('depth_1_decay', 0.05), ('depth_2_decay', 0.1)]
    """
    check_range("decay", decay, low=0, high=1, low_open=True)
    check_range("lr", lr, low=0)
    depths = _depths(module)
    deepest = max(depths.values(), default=0)
    names = {owned.parameter: owned.name for owned in owned_parameters(module)}
    groups: dict[str, dict[str, Any]] = {}
    for part in weight_decay_groups(module, weight_decay, exclude=exclude):
        settings = {name: value for name, value in part.items() if name not in ("name", "params")}
        for parameter in part["params"]:
            depth = depths[names[parameter]]
            name = f"depth_{depth}_{part['name']}"
            group = {"name": name, "params": [], "lr": lr * decay ** (deepest - depth), **settings}
            groups.setdefault(name, group)["params"].append(parameter)
    found = sorted(groups.values(), key=lambda group: int(group["name"].split("_")[1]))
    if verbose:
        rows = [("layer", "learning rate", "parameters")]
        rows += [(group["name"], f"{group['lr']:.3g}", ", ".join(names[p] for p in group["params"])) for group in found]
        print("\n".join(table(rows)))  # noqa: T201
    return found


def _depths(module: nn.Module) -> dict[str, int]:
    """Returns the depth of every parameter by name: the position of its numbered block."""
    names = [owned.name for owned in owned_parameters(module)]
    stems: dict[str, list[str]] = {}
    for name in names:
        numbered = _NUMBERED.match(name)
        if numbered:
            stems.setdefault(numbered["stem"], []).append(numbered["block"])
    blocks = {stem: list(dict.fromkeys(found)) for stem, found in stems.items()}
    stem = max(blocks, key=lambda stem: len(blocks[stem]), default="")
    if len(blocks.get(stem, ())) < 2:
        # The module's own parameters, such as tokens and positions, are no layers; they lie before the first one.
        children = list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))
        return {name: children.index(name.partition(".")[0]) if "." in name else 0 for name in names}
    order = {block: index + 1 for index, block in enumerate(blocks[stem])}
    if names[0].startswith(f"{stem}{blocks[stem][0]}."):  # nothing comes before the blocks
        order = {block: index - 1 for block, index in order.items()}
    depths: dict[str, int] = {}
    last = max(order.values())
    reached = 0
    for name in names:
        numbered = _NUMBERED.match(name)
        if numbered and numbered["stem"] == stem:
            reached = depths[name] = order[numbered["block"]]
        else:
            depths[name] = last + 1 if reached == last else reached
    return depths


def weight_decay_table(module: nn.Module, *, exclude: str | Sequence[str] = ()) -> str:
    """Returns a table of all parameters that says whether :func:`weight_decay_groups` decays each, or why not.

    Args:
        module: Module whose parameters are listed.
        exclude: Globs over parameter names that aren't decayed, or a single one.

    Raises:
        SettingError: If the module is lazy and has not run yet.

    >>> print(weight_decay_table(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))))
    parameter  shape   weight decay
    0.weight   (5, 4)  no: embedding
    1.weight   (2, 4)  yes
    1.bias     (2,)    no: norm or bias
    8 of 30 weights are decayed
    """
    exclude = as_patterns("exclude", exclude)
    rows = [("parameter", "shape", "weight decay")]
    decayed = total = 0
    for owned in _shaped_parameters(module):
        why = _why_spared(owned, exclude) if owned.parameter.requires_grad else "frozen"
        rows.append((owned.name, str(tuple(owned.parameter.shape)), f"no: {why}" if why else "yes"))
        total += owned.parameter.numel()
        decayed += 0 if why else owned.parameter.numel()
    return "\n".join([*table(rows), f"{decayed:,} of {total:,} weights are decayed"])


def _shaped_parameters(module: nn.Module) -> list[OwnedParameter]:
    """Returns the parameters, if all of them have shapes, by which scales are told from matrices."""
    parameters = owned_parameters(module)
    for owned in parameters:
        if isinstance(owned.parameter, UninitializedParameter):
            raise SettingError(
                f"module must know all its shapes, but {owned.name} has none yet; run a batch through it first"
            )
    return parameters


def _why_spared(owned: OwnedParameter, exclude: Sequence[str]) -> str:
    if owned.is_norm_or_bias:
        return "norm or bias"
    if owned.is_embedding:
        return "embedding"
    return "excluded" if any(fnmatch.fnmatchcase(owned.name, pattern) for pattern in exclude) else ""
