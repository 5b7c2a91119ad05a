"""Selecting a module's parameters and submodules by globs over their qualified names."""

import functools
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from operator import is_
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torchmetrics import Metric
from typing_extensions import Self

from lightning_reg.optim import OwnedParameter, owned_parameters
from lightning_reg.settings import SettingError, as_patterns, did_you_mean, near_matches

__all__ = [
    "Selection",
    "as_patterns",
    "check_units",
    "listed",
    "plain_name",
    "select_layers",
    "select_modules",
    "select_names",
    "select_parameters",
    "unit_dims",
]

_NO_LAYERS = (Metric, nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that error messages don't offer."""


def select_parameters(
    module: nn.Module,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    exclude_norm_and_bias: bool = True,
    matrices_only: bool = False,
    setting: str = "include",
) -> dict[str, nn.Parameter]:
    """Returns the parameters that the patterns select, by qualified name.

    Args:
        module: Module that has the parameters; tied ones count once, under their first name.
        include: Globs over qualified names, such as ``"encoder.*.weight"``; a parameter has to match one of them.
        exclude: Globs over qualified names; a parameter that matches one of them is left out.
        exclude_norm_and_bias: Whether to leave out biases and the parameters of normalization layers.
        matrices_only: Whether to leave out parameters with fewer than two dimensions.
        setting: Name of the argument that holds ``include``, for error messages.

    Raises:
        SettingError: If a pattern matches nothing, or nothing is left; a technique is never silently inert.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    >>> list(select_parameters(network))
    ['0.weight']
    """
    owned = {plain_name(owned_parameter.name): owned_parameter for owned_parameter in owned_parameters(module)}
    names = list(owned)
    _check_shapes(owned.values())
    eligible = {
        name: entry.parameter
        for name, entry in owned.items()
        if not (exclude_norm_and_bias and entry.is_norm_or_bias)
        and not (matrices_only and entry.parameter.ndim < 2)
        and entry.parameter.numel()
    }
    for argument, patterns in ((setting, include), ("exclude", exclude)):
        _check_patterns(argument, patterns, names, offered=list(eligible))
    chosen = {
        name: parameter
        for name, parameter in eligible.items()
        if _matches(name, include) and not _matches(name, exclude)
    }
    if not chosen:
        raise SettingError(
            f"{setting} {list(include)} less exclude {list(exclude)}"
            f"{' less norms and biases' if exclude_norm_and_bias else ''}{' less vectors' if matrices_only else ''} "
            f"leaves no parameter of {listed(names)}"
        )
    return chosen


class ChoosesParameters(Protocol):
    """A technique whose settings select parameters."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    exclude_norm_and_bias: bool


class Selection:
    """The parameters that the patterns select, selected again when the module has new ones.

    Layers that are replaced in the middle of a fit bring parameters that the optimizer didn't have before.

    Args:
        include: Globs over qualified names; a parameter has to match one of them.
        exclude: Globs over qualified names; a parameter that matches one of them is left out.
        exclude_norm_and_bias: Whether to leave out biases and the parameters of normalization layers.
        by_unit: Whether to select only matrices and filters, which must have units.
        group: ``"output"`` for units of the weights that lead into them, ``"input"`` for those that lead out of them.
        setting: Name of the argument that holds ``include``, for error messages.

    Raises:
        SettingError: As :func:`select_parameters`, or if a parameter has no units.

    >>> layer = nn.Linear(2, 2)
    >>> Selection(layer).of([layer.bias, layer.weight])[0] is layer.weight
    True
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
        by_unit: bool = False,
        group: str = "output",
        setting: str = "include",
    ) -> None:
        self._module = module
        self._choose = functools.partial(
            select_parameters,
            module,
            include=include,
            exclude=exclude,
            exclude_norm_and_bias=exclude_norm_and_bias,
            matrices_only=by_unit,
            setting=setting,
        )
        self.setting = setting
        self._by_unit = by_unit
        self._group = group
        self._is_met: bool | None = None
        self._known: set[nn.Parameter] = set()
        self._latest: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []  # requested, and selected among them
        self._dims: dict[nn.Parameter, int] | None = None  # computed on first use
        self.names: dict[nn.Parameter, str] = {}
        self._renew()

    @classmethod
    def by(
        cls, settings: ChoosesParameters, module: nn.Module, *, by_unit: bool = False, group: str = "output"
    ) -> Self:
        """Returns the selection that a technique's settings describe."""
        return cls(
            module,
            include=settings.include,
            exclude=settings.exclude,
            exclude_norm_and_bias=settings.exclude_norm_and_bias,
            by_unit=by_unit,
            group=group,
        )

    def of(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Returns the selected ones among the given parameters."""
        asked, chosen = self._latest
        # Usually the same as at the step before: comparing thousands of tensors is faster than looking each up.
        if len(asked) != len(parameters) or not all(map(is_, asked, parameters)):
            if not self._known.issuperset(parameters):
                self._renew()
                self._known.update(parameters)
            chosen = [parameter for parameter in parameters if parameter in self.names]
            self._latest = list(parameters), chosen
            self._is_met = bool(chosen) or bool(self._is_met)
        return list(chosen)

    @property
    def bypassed(self) -> str:
        """Names of what is selected, if no optimizer has had any of it so far; else empty."""
        return listed(list(self.names.values())) if self._is_met is False else ""

    def units(self, tensors: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Returns views whose first dimension indexes the units; every entry of a vector is a unit.

        Args:
            tensors: The parameters, or tensors of their shapes.
            parameters: Selected parameters that the tensors belong to.
        """
        if self._dims is None:
            self._dims = unit_dims(self._module, self._group)
        pairs = zip(tensors, parameters, strict=True)
        return [tensor.detach().movedim(self._dims.get(parameter, 0), 0) for tensor, parameter in pairs]

    def _renew(self) -> None:
        chosen = self._choose()
        self.names = {parameter: name for name, parameter in chosen.items()}
        self._known = set(self._module.parameters())
        self._latest = [], []
        self._dims = None
        if self._by_unit:
            check_units(chosen, unit_dims(self._module, self._group))


def unit_dims(module: nn.Module, group: str = "output") -> dict[nn.Parameter, int]:
    """Returns the dimension that indexes the units, for each parameter of two or more dimensions.

    Args:
        group: ``"output"`` for units of the weights that lead into them: dimension 0, 1 for transposed convolutions.
            ``"input"`` for units of the weights that lead out of them: the other of these two.

    Returns:
        Dimension by parameter, without grouped convolutions whose units lie across groups.

    >>> network = nn.Sequential(nn.Linear(4, 2), nn.ConvTranspose1d(2, 3, 1))
    >>> list(unit_dims(network).values())
    [0, 1]
    """
    dims = {}
    for owned_parameter in owned_parameters(module):
        if owned_parameter.parameter.ndim >= 2:
            transposed = any(isinstance(owner, nn.modules.conv._ConvTransposeNd) for _, owner in owned_parameter.owners)
            dim = int(transposed) if group == "output" else int(not transposed)
            if dim == 1 and any(getattr(owner, "groups", 1) > 1 for _, owner in owned_parameter.owners):
                continue  # there the second dimension indexes units within their group only
            dims[owned_parameter.parameter] = dim
    return dims


def select_layers(module: nn.Module, patterns: Sequence[str], most: int) -> tuple[dict[str, list[nn.Parameter]], int]:
    """Returns the parameters of each layer that the patterns select, and the number of layers left out.

    A layer is a module that holds parameters itself; tied ones count where they are found first.

    Args:
        patterns: Globs over names of layers.
        most: Largest number of layers to return; those with the most parameters are kept.

    Raises:
        SettingError: If a pattern matches nothing.

    >>> layers, left_out = select_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), ("*",), 1)
    >>> list(layers), left_out
    (['0'], 1)
    """
    layers: dict[str, list[nn.Parameter]] = {}
    owned = owned_parameters(module)
    _check_shapes(owned)
    for owned_parameter in owned:
        name = plain_name(owned_parameter.name).partition(".parametrizations.")[0]
        layer = name if ".parametrizations." in owned_parameter.name else name.rpartition(".")[0]
        layers.setdefault(layer, []).append(owned_parameter.parameter)
    _check_patterns("layers", patterns, list(layers), kind="layer")
    chosen = [name for name in layers if _matches(name, patterns)]
    largest = sorted(chosen, key=lambda name: -sum(part.numel() for part in layers[name]))[:most]
    return {name: layers[name] for name in chosen if name in largest}, len(chosen) - len(largest)


def _check_shapes(owned: Iterable[OwnedParameter]) -> None:
    """Raises if a parameter of a lazy layer has no shape yet."""
    for entry in owned:
        if isinstance(entry.parameter, UninitializedParameter):
            raise SettingError(
                f"{plain_name(entry.name)} must have a shape when the fit starts; run the module once before"
            )


def select_modules(
    module: nn.Module,
    *,
    include: Sequence[str],
    exclude: Sequence[str] = (),
    types: Sequence[str | type] = (),
    setting: str = "include",
) -> dict[str, nn.Module]:
    """Returns the submodules that the patterns select, by qualified name.

    Args:
        module: Module to search; shared submodules count once, under their first name.
        include: Globs over qualified names; a submodule has to match one of them.
        exclude: Globs over qualified names; a submodule that matches one of them is left out.
        types: Classes, or names of classes; unless empty, a submodule has to be an instance of one of them.
        setting: Name of the argument that holds ``include``, for error messages.

    Raises:
        SettingError: If a pattern matches nothing, or nothing is left; a technique is never silently inert.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> select_modules(network, include=("1",))
    {'1': ReLU()}
    """
    # A compiled module appears twice, as its wrapper and as itself: the later one, itself, fires the hooks.
    # The modules inside parametrizations aren't layers that a user means, and those of torch.jit can't be hooked or
    # replaced.
    named = {
        plain_name(name): submodule
        for name, submodule in module.named_modules()
        if name and "parametrizations" not in name.split(".") and not isinstance(submodule, torch.jit.ScriptModule)
    }
    matching = select_names(list(named), include=include, exclude=exclude, kind="module", setting=setting)
    for kind in types:
        if not any(_is_a(submodule, kind) for submodule in named.values()):
            layers = [submodule for submodule in named.values() if not isinstance(submodule, _NO_LAYERS)]
            there = sorted({type(layer).__name__ for layer in layers})
            hint = did_you_mean(_named(kind), there)
            raise SettingError(
                f"types must be of modules that there are, {', '.join(there)}, but is {_named(kind)!r}{hint}"
            )
    chosen = {name: named[name] for name in matching if not types or any(_is_a(named[name], kind) for kind in types)}
    if not chosen:
        raise SettingError(
            f"types must be of modules that the patterns choose, {listed(matching)}, but is "
            f"{', '.join(map(_named, types))}"
        )
    return chosen


def select_names(
    names: Sequence[str], *, include: Sequence[str], exclude: Sequence[str], kind: str, setting: str = "include"
) -> list[str]:
    """Returns the names that the patterns select.

    Args:
        names: Qualified names to select from.
        include: Globs; a name has to match one of them.
        exclude: Globs; a name that matches one of them is left out.
        kind: Noun for what has the names, for error messages.
        setting: Name of the argument that holds ``include``, for error messages.

    Raises:
        SettingError: If a pattern matches nothing, or nothing is left.

    >>> select_names(["a.0", "a.1", "b"], include=("a.*",), exclude=("*.1",), kind="layer")
    ['a.0']
    """
    for argument, patterns in ((setting, include), ("exclude", exclude)):
        _check_patterns(argument, patterns, names, kind=kind)
    chosen = [name for name in names if _matches(name, include) and not _matches(name, exclude)]
    if not chosen:
        raise SettingError(
            f"{setting} {list(include)} less exclude {list(exclude)} leaves no {kind} of {listed(names)}"
        )
    return chosen


def _is_a(module: nn.Module, kind: str | type) -> bool:
    if isinstance(kind, type):
        return isinstance(module, kind)
    return any(kind == base.__name__ for base in type(module).__mro__)


def _named(kind: str | type) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(
    setting: str,
    patterns: Sequence[str],
    names: Sequence[str],
    kind: str = "parameter",
    offered: Sequence[str] | None = None,
) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = near_matches(pattern, offered or names) or list(offered or names)
            raise SettingError(f"{setting} pattern {pattern!r} matches no {kind}; there are {listed(near) or 'none'}")


def plain_name(name: str) -> str:
    """Returns a qualified name as the user wrote it, without the parts that torch adds.

    Args:
        name: Name of a parameter or module, possibly inside a compiled module, or of a parametrized parameter.
    """
    # torch.compile of an inner module puts "_orig_mod" into the names, which no user ever wrote, and a parametrization
    # "parametrizations.weight.original".
    name = re.sub(r"(^|\.)parametrizations\.([^.]+)\.original$", r"\1\2", name)
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def listed(names: Sequence[str], most: int = 8) -> str:
    """Returns names in a sentence, the first of them where there are many.

    >>> listed(["first", "second", "third"], most=2)
    'first, second and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_units(selected: dict[str, nn.Parameter], dims: dict[nn.Parameter, int]) -> None:
    """Raises if a parameter has no units.

    Args:
        dims: Return value of :func:`unit_dims`.

    Raises:
        SettingError: If a parameter isn't among ``dims``.
    """
    for name, parameter in selected.items():
        if parameter not in dims:
            raise SettingError(
                f"exclude must name {name}, a grouped convolution whose units aren't along one dimension of its weights"
            )
