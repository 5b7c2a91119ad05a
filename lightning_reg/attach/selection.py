"""Choosing parameters of any module by globs over their qualified names."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lightning_reg.optim import owned_parameters
from lightning_reg.settings import SettingError, near_matches

__all__ = ["select_parameters"]


def select_parameters(
    module: nn.Module,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    exclude_norm_and_bias: bool = True,
) -> dict[str, nn.Parameter]:
    """Returns the parameters that the patterns choose, by qualified name.

    Args:
        module: Whose parameters; tied ones count once, under their first name.
        include: Globs over qualified names, such as ``"encoder.*.weight"``; a parameter has to match one of them.
        exclude: Globs likewise; a parameter that matches one of them is left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.

    Raises:
        SettingError: If a pattern matches nothing, or nothing is left; a technique is never silently inert.

    >>> network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    >>> list(select_parameters(network))
    ['0.weight']
    """
    owned = {_without_compile_prefix(each.name): each for each in owned_parameters(module)}
    names = list(owned)
    for setting, patterns in (("include", include), ("exclude", exclude)):
        _check_patterns(setting, patterns, names)
    chosen = {
        name: each.parameter
        for name, each in owned.items()
        if _matches(name, include)
        and not _matches(name, exclude)
        and not (exclude_norm_and_bias and each.is_norm_or_bias)
    }
    if not chosen:
        raise SettingError(
            f"include {list(include)} less exclude {list(exclude)}"
            f"{' less norms and biases' if exclude_norm_and_bias else ''} leaves no parameter of {_listed(names)}"
        )
    return chosen


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(setting: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = near_matches(pattern, names) or list(names)
            raise SettingError(f"{setting} pattern {pattern!r} matches no parameter; there are {_listed(near)}")


def _without_compile_prefix(name: str) -> str:
    # torch.compile of an inner module puts "_orig_mod." into the names, which no user ever wrote.
    return name.replace("_orig_mod.", "")


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
