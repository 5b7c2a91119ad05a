"""Validation of settings; error messages name the argument, the allowed values and the value given."""

import difflib
import inspect
import math
import numbers
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "MonitorError",
    "SettingError",
    "as_patterns",
    "as_sequence",
    "check_callable",
    "check_choice",
    "check_count",
    "check_dim",
    "check_flags",
    "check_range",
    "check_text",
    "did_you_mean",
    "first_in_chain",
    "imported",
    "named_or_imported",
    "near_matches",
]


T = TypeVar("T")

_LARGEST = 3.4028234663852886e38


class SettingError(ValueError):
    """A setting, or data it points to, can't be used; the message says which, what it is and what is allowed.

    The command line prints the message alone; in Python it is a ``ValueError`` like any other.
    """


class MonitorError(SettingError, RuntimeError):
    """A monitored metric was never logged; also a ``RuntimeError``, which Lightning raises in this case."""


def first_in_chain(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """Returns the first exception in a chain of causes that is of the given types, or None.

    The argument parser reports a class that can't be instantiated as a type mismatch, with the reason as the cause.

    Args:
        error: The raised exception, if any.
        kinds: Exception types to look for.

    >>> try:
    ...     raise ValueError("of no type") from SettingError("rate is 2")
    ... except ValueError as error:
    ...     first_in_chain(error, (SettingError,))
    SettingError('rate is 2')
    """
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def near_matches(value: str, options: Iterable[str], *, most: int = 3) -> list[str]:
    """Returns the options that look like ``value``, best first.

    Args:
        most: Largest number of matches.

    >>> near_matches("digitz", ["digits", "mnist"])
    ['digits']
    """
    return difflib.get_close_matches(value, list(options), n=most)


def did_you_mean(value: str, options: Iterable[str], *, most: int = 1) -> str:
    """Returns the end of a message that suggests options that look like ``value``; empty where none does.

    Args:
        most: Largest number of options named.

    >>> did_you_mean("digitz", ["digits", "mnist"])
    "; did you mean 'digits'?"
    """
    near = near_matches(value, options, most=most)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_choice(name: str, value: str, options: Sequence[str]) -> None:
    """Raises unless ``value`` is one of ``options``.

    Args:
        name: Name of the argument, as the user writes it.

    Raises:
        SettingError: If the value is none of the options; suggests the nearest one.

    >>> check_choice("norm", "bach", ["batch", "layer"])
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: norm must be one of batch, layer, but is 'bach'; did you mean 'batch'?
    """
    if value not in options:
        hint = did_you_mean(str(value), options)
        raise SettingError(f"{name} must be one of {', '.join(options)}, but is {value!r}{hint}")


def check_range(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    infinite: bool = False,
) -> None:
    """Raises unless ``value`` is a number between ``low`` and ``high``.

    Args:
        name: Name of the argument, as the user writes it.
        low_open: Whether ``low`` itself is excluded.
        high_open: Whether ``high`` itself is excluded.
        infinite: Whether a value may be infinite.

    Raises:
        SettingError: If the value is no number, or outside of the range.

    >>> check_range("drop_prob", 1.0, low=0, high=1, high_open=True)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: drop_prob must be in [0, 1), but is 1.0
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingError(f"{name} must be a number, but is {value!r}{_how_to_convert(value, 'float')}")
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    is_infinite = abs(value) == math.inf
    if above and below and (infinite if is_infinite else abs(value) <= _LARGEST):  # a NaN fails every comparison
        return
    if above and below and not is_infinite:
        raise SettingError(f"{name} must be within ±{_LARGEST:.3g}, the range of float32, but is beyond")
    left = "(" if low_open or (math.isinf(low) and not infinite) else "["
    right = ")" if high_open or (math.isinf(high) and not infinite) else "]"
    bounds = [str(bound).replace("inf", "∞") for bound in (low, high)]
    raise SettingError(f"{name} must be in {left}{bounds[0]}, {bounds[1]}{right}, but is {value}")


def _how_to_convert(value: Any, kind: str) -> str:
    """Returns how NumPy's numbers become Python's, which alone can lie in configurations and checkpoints."""
    is_foreign = isinstance(value, numbers.Real) and not isinstance(value, (int, float))
    return f"; convert it by {kind}(...)" if is_foreign else ""


def check_count(name: str, value: int, *, low: int = 1, high: int = sys.maxsize) -> None:
    """Raises unless ``value`` is a whole number of at least ``low`` and at most ``high``.

    Args:
        name: Name of the argument, as the user writes it.
        high: Largest number; by default that of a signed integer of 64 bits.

    Raises:
        SettingError: If the value is no whole number, or outside of the bounds.

    >>> check_count("batch_size", 0)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: batch_size must be a whole number of at least 1, but is 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        is_beyond = isinstance(value, int) and value > sys.maxsize  # such a number may be too long to print
        most = f" and at most {high:,}" if high < sys.maxsize or is_beyond else ""
        found = f"above {sys.maxsize:,}" if is_beyond else f"{value!r}{_how_to_convert(value, 'int')}"
        raise SettingError(f"{name} must be a whole number of at least {low}{most}, but is {found}")


def check_dim(name: str, dim: int) -> None:
    """Raises unless ``dim`` can be a tensor's dimension, counted from the end where it is negative.

    Args:
        name: Name of the argument, as the user writes it.

    Raises:
        SettingError: If it is no whole number, or no tensor has as many dimensions.

    >>> check_dim("time_dim", "last")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: time_dim must be a whole number of at least -64 and at most 63, but is 'last'
    """
    check_count(name, dim, low=-64, high=63)


def check_flags(owner: object) -> None:
    """Raises if an object holds text for one of its arguments that are annotated as true or false.

    Python takes any text for true, ``"false"`` as well.

    Args:
        owner: An object that keeps its arguments under their names.

    Raises:
        SettingError: If there is such an argument.
    """
    for name, parameter in inspect.signature(type(owner)).parameters.items():
        value = getattr(owner, name, None)
        if parameter.annotation in (bool, bool | None, "bool", "bool | None") and isinstance(value, str):
            raise SettingError(f"{name} must be true or false, but is the text {value!r}")


def check_text(name: str, value: str | Path, *, or_path: bool = False) -> None:
    """Raises unless ``value`` is text that isn't empty.

    Args:
        name: Name of the argument, as the user writes it.
        or_path: Whether a path is as good.

    Raises:
        SettingError: If it is something else.

    >>> check_text("metric", 5)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: metric must be text, but is 5
    """
    if not isinstance(value, (str, Path) if or_path else str) or not value:
        raise SettingError(f"{name} must be text{' or a path' * or_path}, but is {value!r}")


def as_sequence(name: str, value: Iterable[T]) -> tuple[T, ...]:
    """Returns the entries of a sequence.

    Args:
        name: Name of the argument, as the user writes it.

    Raises:
        SettingError: If the value is a text, or has no entries to iterate over.

    >>> as_sequence("hidden_sizes", 5)
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: hidden_sizes must be a list, but is 5
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise SettingError(f"{name} must be a list, but is {value!r}")
    return tuple(value)


def check_callable(name: str, value: Any, kind: str) -> None:
    """Raises unless ``value`` can be called.

    Args:
        name: Name of the argument, as the user writes it.
        kind: What it must be, for the error message.

    Raises:
        SettingError: If the value can't be called.

    >>> check_callable("optimizer", "adam", "a function from parameters to an optimizer")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: optimizer must be a function from parameters to an optimizer, but is 'adam'
    """
    if not callable(value):
        raise SettingError(f"{name} must be {kind}, but is {value!r}")


def as_patterns(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """Returns globs as a tuple; a single one may be given as a string.

    Args:
        name: Name of the argument, as the user writes it.

    Raises:
        SettingError: If the value is neither, or a glob is empty.

    >>> as_patterns("include", "head.*")
    ('head.*',)
    """
    patterns = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise SettingError(f"{name} must be globs over names, but is {value!r}")
    return patterns


def named_or_imported(name: str, value: Any, options: Sequence[str]) -> Any:
    """Returns a known name or the object at a dotted import path; anything but a string passes through.

    So a YAML file can say ``norm: batch`` as well as ``norm: torch.nn.LazyBatchNorm1d``.

    Args:
        name: Name of the argument, as the user writes it.
        options: Known names.

    Raises:
        SettingError: If the name is unknown or the path can't be imported.

    >>> named_or_imported("norm", "math.sqrt", ["batch"])(4)
    2.0
    """
    if not isinstance(value, str):
        return value
    if "." not in value:
        check_choice(name, value, options)
        return value
    return imported(name, value, f"one of {', '.join(options)} or the import path of a callable")


def imported(name: str, path: str, allowed: str = "the import path of a callable") -> Any:
    """Returns the callable at a dotted import path.

    Args:
        name: Name of the argument, as the user writes it.
        allowed: The allowed values, for the error message.

    Raises:
        SettingError: If the path can't be imported or isn't that of a callable.

    >>> imported("function", "math.sqrt")(4)
    2.0
    """
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"{name} must be {allowed}, but is {path!r}: {error}") from error
    if not callable(found):
        raise SettingError(f"{name} must be {allowed}, but {path!r} is a {type(found).__name__}")
    return found
