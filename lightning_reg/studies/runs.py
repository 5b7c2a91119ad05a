"""Runs of a study, which are identified by a hash of their content."""

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
    """The content of one run.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the run.
        key: Hash of the content, which identifies the run.
        command: Words after ``fit`` on the command line; empty if the run isn't a training.
        function: Dotted name of the function to compute; empty if the run isn't a computation.
        arguments: Arguments of the computation, including the seed, or of the function that performs the run.
        collect: Results to keep in addition to metrics and curves.
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
    """The measurements of a run; see :class:`lightning_reg.studies.outcome.Result`."""

    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    collected: Mapping[str, Any] = field(default_factory=dict)


def key_of(content: Any) -> str:
    """Returns a hash of JSON-like content, as 16 hexadecimal digits.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
    True
    """
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def check_distinct(contents: Mapping[str, Any], base: Any) -> None:
    """Checks that no two variants are the same run.

    Args:
        contents: Content of each variant's runs without the seed, by variant.
        base: Content of the unchanged base, without the seed.

    Raises:
        SettingError: If two variants are the same.
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
    """Returns the runs of a study that computes a function, ordered by seed.

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
    """Performs a run of a study that computes a function.

    Args:
        _: Folder of the run, which isn't used.
    """
    returned = imported("function", run.function, _FUNCTION)(**run.arguments)
    metrics, collected = returned if isinstance(returned, tuple) else (returned, {})
    return Measured(metrics={str(name): float(value) for name, value in metrics.items()}, collected=collected)


def self_contained(run: Run) -> Run:
    """Returns a run with paths and names of configurations replaced by their text, for machines without these files.

    Raises:
        SettingError: If a configuration can no longer be read.
    """
    words: list[str] = []
    for index, word in enumerate(run.command):
        is_path = index > 0 and run.command[index - 1] == "--config"
        words.append(read_text("configuration", find_config("configuration", word)) if is_path else word)
    return replace(run, command=tuple(words))
