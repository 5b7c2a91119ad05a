"""The layout of what collectors keep of a run, which reports rely on."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_reg.settings import SettingError
from lightning_reg.text import counted

__all__ = ["check_collected", "checked_list", "checked_mapping", "checked_number"]

_NUMBER, _FINITE = "a number", "a finite number"
_LAYOUTS: Mapping[str, Any] = {
    "weights": {"edges": [_FINITE], "counts": [_FINITE], "zero_fraction": _FINITE},
    "activations": {"steps": [_FINITE], "layers": {"*": {"mean": [_NUMBER], "std": [_NUMBER]}}},
    "predictions": {"targets": [_NUMBER]},
    "reload": {"largest_difference": _NUMBER, "samples": _FINITE, "same_classes": None},
    "decomposition": dict.fromkeys(("bias_squared", "variance", "noise", "error", "error_standard_error"), _NUMBER),
}
"""What each collector keeps at least, by its name; ``*`` stands for any name, None for anything."""


def check_collected(collected: Mapping[str, Any]) -> None:
    """Checks what was collected of a run. Results of other names, which a computation may return, aren't looked at.

    Args:
        collected: The results, by collector.

    Raises:
        SettingError: If a part is missing, or of another kind or length.
    """
    for collector, layout in _LAYOUTS.items():
        if collector in collected:
            _check(f"collected.{collector}", collected[collector], layout)
    if "weights" in collected:
        edges, counts = collected["weights"]["edges"], collected["weights"]["counts"]
        _check_length("collected.weights.edges", edges, len(counts) + 1)
    if "activations" in collected:
        steps = collected["activations"]["steps"]
        for layer, columns in collected["activations"]["layers"].items():
            for column in ("mean", "std"):
                _check_length(f"collected.activations.layers.{layer}.{column}", columns[column], len(steps))
    if "predictions" in collected:
        predictions = collected["predictions"]
        kind = "values" if "values" in predictions else "classes"
        _check(f"collected.predictions.{kind}", predictions.get(kind), [_NUMBER])
        _check_length(f"collected.predictions.{kind}", predictions[kind], len(predictions["targets"]))


def checked_mapping(name: str, value: Any) -> dict[str, Any]:
    """Returns a value that must be a mapping."""
    if not isinstance(value, dict):
        raise SettingError(f"result must have {name} by name, but has {_shown(value)}")
    return value


def checked_list(name: str, value: Any) -> list[Any]:
    """Returns a value that must be a list."""
    if not isinstance(value, list):
        raise SettingError(f"result must have a list as {name}, but has {_shown(value)}")
    return value


def checked_number(name: str, value: Any, *, finite: bool = False) -> float:
    """Returns a value that must be a number, as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SettingError(f"result must have {_NUMBER} as {name}, but has {_shown(value)}")
    try:
        number = float(value)
    except OverflowError as error:
        raise SettingError(f"result must have {_NUMBER} as {name}, but has one too large") from error
    if finite and not math.isfinite(number):
        raise SettingError(f"result must have {_FINITE} as {name}, but has {number}")
    return number


def _check(name: str, found: Any, layout: Any) -> None:
    if isinstance(layout, Mapping):
        parts = checked_mapping(name, found)
        for key in parts if "*" in layout else layout:
            _check(f"{name}.{key}", parts.get(key), layout.get(key, layout.get("*")))
    elif isinstance(layout, list):
        for value in checked_list(name, found):
            checked_number(name, value, finite=layout[0] is _FINITE)
    elif layout is not None:
        checked_number(name, found, finite=layout is _FINITE)


def _check_length(name: str, found: list[Any], length: int) -> None:
    if len(found) != length:
        raise SettingError(f"result must have {counted(length, 'number')} as {name}, but has {len(found)}")


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
