"""Ranges of settings: an interval, integers, or a few options."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lightning_reg.core import facts
from lightning_reg.settings import SettingError, check_range, did_you_mean

__all__ = ["Asked", "Interval", "Options", "Range", "as_range", "declared", "is_range"]

Plain = bool | int | float | str | None
Kind = Literal["log", "linear", "integer"]

_KEYS = ("log", "linear", "integer", "choice", "usual")


class Asked(Protocol):
    """Interface of an object that proposes values, such as Optuna's trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Returns a number in an interval."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Returns an integer in an interval."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Returns one of several values."""


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds, both included.

    Attributes:
        kind: ``log`` for a logarithmic scale, ``linear`` for a linear one, ``integer`` for integers.
        low: Lower bound.
        high: Upper bound.
        usual: Value to try first.
    """

    kind: Kind
    low: float
    high: float
    usual: float

    def suggest(self, trial: Asked, name: str) -> Any:
        """Returns a value that a trial proposes."""
        if self.kind == "integer":
            return trial.suggest_int(name, int(self.low), int(self.high))
        return trial.suggest_float(name, self.low, self.high, log=self.kind == "log")

    def check(self, name: str, value: Any) -> None:
        """Checks that a value is in the interval."""
        check_range(name, value, low=self.low, high=self.high)
        if self.kind == "integer" and not isinstance(value, int):
            raise SettingError(f"{name} must be a whole number, but is {value!r}")


@dataclass(frozen=True)
class Options:
    """One of several values, each of which may contain nested ranges.

    Attributes:
        values: Values by name; the name of a plain value is the value itself.
        usual: Name of the option to try first.
    """

    values: Mapping[Any, Any] = field(hash=False)
    usual: Any

    def suggest(self, trial: Asked, name: str) -> Any:
        """Returns the name of the option that a trial proposes."""
        return trial.suggest_categorical(name, list(self.values))

    def check(self, name: str, value: Any) -> None:
        """Checks that a value is one of the options."""
        if value not in list(self.values):  # a list or a mapping has no hash
            hint = did_you_mean(str(value), map(str, self.values))
            raise SettingError(f"{name} must be one of {', '.join(map(str, self.values))}, but is {value!r}{hint}")


Range = Interval | Options


def is_range(value: Any) -> bool:
    """Whether a value in a space's file defines a range.

    Args:
        value: The value, as read from the file.

    >>> is_range({"log": [1e-4, 1.0]}), is_range({"class_path": "Mixup"}), is_range(0.1)
    (True, False, False)
    """
    return isinstance(value, Mapping) and any(key in _KEYS[:-1] for key in value)


def as_range(name: str, given: Mapping[str, Any]) -> Range:
    """Returns the range defined by a mapping in a space's file.

    Args:
        name: Name of the setting, for error messages.
        given: ``log``, ``linear`` or ``integer`` with the two bounds, or ``choice`` with the options: a list of plain
            values, or any values by name; optionally ``usual``, the value to try first.

    Raises:
        SettingError: If the mapping doesn't define a valid range.

    >>> as_range("p", {"linear": [0.1, 0.5]}).usual
    0.3
    >>> as_range("weight", {"log": [1e-2, 1e-4]})
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: weight.log must be the lower bound and the higher one, but is [0.01, 0.0001]
    """
    for key in given:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise SettingError(f"{name} must have log, linear, integer or choice, and usual, but has {key!r}{hint}")
    kinds = [key for key in given if key != "usual"]
    if len(kinds) != 1:
        raise SettingError(f"{name} must have one of log, linear, integer and choice, but has {' and '.join(kinds)}")
    kind = kinds[0]
    if kind == "choice":
        return _options(name, given["choice"], given)
    bounds = given[kind]
    where = f"{name}.{kind}"
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise SettingError(f"{where} must be a list of two numbers, but is {bounds!r}")
    for bound in bounds:
        check_range(where, bound, low=0 if kind == "log" else -math.inf, low_open=kind == "log")
        if kind == "integer" and not isinstance(bound, int):
            raise SettingError(f"{where} must be two whole numbers, but is {bounds!r}")
    low, high = bounds
    if low >= high:
        raise SettingError(f"{where} must be the lower bound and the higher one, but is {bounds!r}")
    made = Interval(kind, low, high, _middle(kind, low, high))  # type: ignore[arg-type]  # looked up above
    return made if "usual" not in given else _with_usual(f"{name}.usual", made, given["usual"])


def _with_usual(name: str, made: Interval, usual: Any) -> Interval:
    made.check(name, usual)
    return Interval(made.kind, made.low, made.high, usual)


def _middle(kind: str, low: float, high: float) -> float:
    if kind == "integer":
        return (int(low) + int(high)) // 2
    middle = math.sqrt(low * high) if kind == "log" else (low + high) / 2
    return float(f"{middle:.3g}")


def _options(name: str, values: Any, given: Mapping[str, Any]) -> Options:
    if isinstance(values, list) and all(
        value is None or isinstance(value, (bool, int, float, str)) for value in values
    ):
        named = {value: value for value in values}
    elif isinstance(values, dict) and all(isinstance(key, str) for key in values):
        named = values
    else:
        raise SettingError(f"{name}.choice must be a list of plain values, or values by name, but is {values!r}")
    if len(named) < 2:
        raise SettingError(f"{name}.choice must have at least two options, but is {values!r}")
    made = Options(named, given.get("usual", next(iter(named))))
    made.check(f"{name}.usual", made.usual)
    return made


def declared(found: facts.Range) -> Range:
    """Returns the range that a technique declares.

    Args:
        found: One of the technique's ``usual_ranges``.

    >>> declared(facts.Log("weight", 1e-6, 1e-2)).usual
    0.0001
    """
    if isinstance(found, facts.Choice):
        return Options({value: value for value in found.values}, found.values[0])
    whole = isinstance(found.low, int) and isinstance(found.high, int)
    kind: Kind = "log" if isinstance(found, facts.Log) else "integer" if whole else "linear"
    return Interval(kind, found.low, found.high, _middle(kind, found.low, found.high))
