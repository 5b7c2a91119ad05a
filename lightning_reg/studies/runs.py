"""One run of a study, and the key that its content gives it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_reg.files import read_text
from lightning_reg.settings import SettingError, imported
from lightning_reg.shipped import find_config
from lightning_reg.studies.definition import Definition

__all__ = ["Measured", "Run", "check_distinct", "computations", "compute", "key_of", "self_contained"]

_FUNCTION = "the dotted name of a function"


@dataclass(frozen=True)
class Run:
    """What one run does.

    Attributes:
        command: What follows ``fit`` on the command line; of a computation nothing.
        function: Dotted name of a computation.
        arguments: Of the computation, the seed among them.
        collect: What is kept beside metrics and curves.
    """

    variant: str
    seed: int
    key: str
    command: tuple[str, ...] = ()
    function: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    collect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What came of a run; see :class:`lightning_reg.studies.outcome.Result`."""

    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    collected: Mapping[str, Any] = field(default_factory=dict)


def key_of(content: Any) -> str:
    """Returns 16 hexadecimal digits that are the same for the same content.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
    True
    """
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def check_distinct(contents: Mapping[str, Any], base: Any) -> None:
    """Raises if two variants are the same run.

    Args:
        contents: By variant, what its runs are made of, without the seed.
        base: Likewise, of the base as it is.

    Raises:
        SettingError: With both names.
    """
    seen: dict[str, str] = {}
    unchanged = key_of(base)
    for name, content in contents.items():
        key = key_of(content)
        other = seen.setdefault(key, name)
        if other == name:
            continue
        if key == unchanged:
            raise SettingError(f"variants.{name} changes nothing: like {other!r}, it is the base as it is")
        raise SettingError(f"variants {other!r} and {name!r} are the same: both come to the same settings")


def computations(definition: Definition) -> list[Run]:
    """Returns the runs of a study of a computation, seed by seed.

    Raises:
        SettingError: If there is no such function, or two variants are the same.
    """
    name = str(definition.function)
    imported("function", name, _FUNCTION)
    merged: dict[str, dict[str, Any]] = {}
    for variant, pieces in definition.variants.items():
        merged[variant] = dict(definition.arguments)
        for piece in pieces:
            merged[variant].update(piece)  # type: ignore[arg-type]  # a computation's pieces are mappings
    check_distinct(merged, dict(definition.arguments))
    return [
        Run(
            variant=variant,
            seed=seed,
            key=key_of({"function": name, "arguments": arguments, "seed": seed}),
            function=name,
            arguments={**arguments, "seed": seed},
        )
        for seed in definition.study.seeds
        for variant, arguments in merged.items()
    ]


def compute(run: Run, _: Path | None = None) -> Measured:
    """Calls a computation.

    Args:
        run: Of a study of a computation.
        _: The run's folder, in which computations write nothing.
    """
    returned = imported("function", run.function, _FUNCTION)(**run.arguments)
    metrics, collected = returned if isinstance(returned, tuple) else (returned, {})
    return Measured(metrics={str(name): float(value) for name, value in metrics.items()}, collected=collected)


def self_contained(run: Run) -> Run:
    """Returns a run that can be done where its configurations aren't: texts stand in the place of paths and names.

    Raises:
        SettingError: If a configuration can't be read any more.
    """
    words: list[str] = []
    for index, word in enumerate(run.command):
        is_path = index > 0 and run.command[index - 1] == "--config"
        words.append(read_text("configuration", find_config("configuration", word)) if is_path else word)
    return replace(run, command=tuple(words))
