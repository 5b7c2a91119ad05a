"""The definition of a study, read from its file and validated before anything runs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_reg.files import read_yaml
from lightning_reg.settings import SettingError, check_choice, check_count, check_range, did_you_mean
from lightning_reg.shipped import near_configs, shipped_configs
from lightning_reg.studies.outcome import Axis, Study
from lightning_reg.studies.study_file import AxisKeys, DataKeys, FormKeys, StudyKeys, parsed

__all__ = ["COLLECTORS", "Definition", "Form", "Piece", "check_seed_count", "pieces", "read_study"]

Piece = Path | Mapping[str, Any]
"""The path or the name of a configuration, or settings by their command-line names."""

COLLECTORS = ("weights", "activations", "reload", "predictions")
"""Names of the results that can be kept of each run in addition to metrics and curves."""

_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Form:
    """Changes to a study for its short form, or for another data set.

    Attributes:
        seeds: Seeds in place of the study's; None keeps the study's.
        base: Pieces appended to the base.
        arguments: Arguments of a computation that override the study's.
        minutes: Expected duration in minutes; None if unknown.
        quick: For another data set: changes for its short form, in addition to the study's own short form.
    """

    seeds: tuple[int, ...] | None = None
    base: tuple[Piece, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    quick: Form | None = None


@dataclass(frozen=True)
class Definition:
    """A study and the runs that it consists of.

    Attributes:
        study: The study: its variants, seeds and metric.
        base: Pieces of the run that variants change; empty for a computation.
        variants: Pieces of each variant, by name; for a computation a single mapping of arguments.
        repeat: Whether each seed also uses its own partition of the data.
        function: Dotted name of the function to compute; None if networks are trained.
        arguments: Arguments of the function, which variants change.
        quick: Changes for the short form.
        data: Changes for other data sets, by name.
        minutes: Expected duration of the full form on two cores in minutes; None if unknown.
    """

    study: Study
    base: tuple[Piece, ...]
    variants: Mapping[str, tuple[Piece, ...]]
    repeat: bool = False
    function: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    quick: Form = field(default_factory=Form)
    data: Mapping[str, Form] = field(default_factory=dict)
    minutes: float | None = None

    def in_form(self, form: Form) -> Definition:
        """Returns the study with the changes of a form applied."""
        study = self.study if form.seeds is None else replace(self.study, seeds=form.seeds)
        arguments = {**self.arguments, **form.arguments}
        return replace(self, study=study, base=(*self.base, *form.base), arguments=arguments, minutes=form.minutes)

    def on(self, place: Piece) -> Definition:
        """Returns the study with settings appended to the base.

        Args:
            place: Settings that select the data; may be empty.
        """
        return replace(self, base=(*self.base, place)) if place else self

    def with_seeds(self, count: int) -> Definition:
        """Returns the study with the seeds from 0 to ``count - 1``."""
        check_seed_count("seeds", count)
        minutes = None if self.minutes is None else self.minutes * count / len(self.study.seeds)
        return replace(self, study=replace(self.study, seeds=tuple(range(count))), minutes=minutes)

    def only(self, names: Sequence[str]) -> Definition:
        """Returns the study with a subset of its variants, in the original order.

        Raises:
            SettingError: If there is no such variant.
        """
        for name in names:
            check_choice("only", name, self.study.variants)
        kept = [name for name in self.study.variants if name in names]
        axis = self.study.axis
        if axis is not None:
            values = dict(zip(self.study.variants, axis.values, strict=True))
            axis = replace(axis, values=tuple(values[name] for name in kept))
        baseline = self.study.baseline if self.study.baseline in kept else kept[0]
        minutes = None if self.minutes is None else self.minutes * len(kept) / len(self.variants)
        study = replace(self.study, variants=tuple(kept), baseline=baseline, axis=axis)
        return replace(self, study=study, variants={name: self.variants[name] for name in kept}, minutes=minutes)


def read_study(path: str | Path) -> Definition:
    """Reads a study file and validates everything that doesn't need its configurations.

    Raises:
        SettingError: If the file is invalid.
    """
    path = Path(path)
    content = read_yaml("study file", path)
    try:
        return _definition(parsed(StudyKeys, content), path)
    except SettingError as error:
        raise SettingError(f"study file {str(path)!r}: {error}") from error


def check_seed_count(name: str, count: int, *, low: int = 1) -> None:
    """Raises unless a number of seeds, with each of which something is run, is from ``low`` to 10,000.

    Args:
        name: Name of the setting, as the user writes it.

    Raises:
        SettingError: If the number is outside of the range.
    """
    check_count(name, count, low=low)
    check_range(name, count, low=low, high=_MOST_SEEDS)


def _definition(keys: StudyKeys, path: Path) -> Definition:
    is_function = keys.function is not None
    left_out = {"base": keys.base, "data": keys.data} if is_function else {"arguments": keys.arguments}
    for name, value in left_out.items():
        if value is not None:
            raise SettingError(f"{name} must be left out of a study {'of' if is_function else 'without'} a function")
    for name, value in {"metric": keys.metric}.items() if is_function else {"base": keys.base}.items():
        if value is None:
            raise SettingError(f"{name} is missing")
    variants = _variants(keys.variants, path, is_function=is_function)
    return Definition(
        study=_study(keys, path.stem, list(variants)),
        base=pieces("base", keys.base, path),
        variants=variants,
        repeat=keys.repeat,
        function=keys.function,
        arguments=_settings("arguments", keys.arguments),
        quick=_form("quick", parsed(FormKeys, keys.quick, "quick"), path),
        data={str(name): _data_form(f"data.{name}", form, path) for name, form in (keys.data or {}).items()},
        minutes=_minutes("minutes", keys.minutes),
    )


def _study(keys: StudyKeys, name: str, variants: list[str]) -> Study:
    baseline = variants[0] if keys.baseline is None else str(keys.baseline)
    check_choice("baseline", baseline, variants)
    for collector in keys.collect:
        check_choice("collect", collector, COLLECTORS)
    metric = keys.metric or "test/accuracy"
    split, _, short = metric.partition("/")
    if keys.function is None and (split not in ("train", "validation", "test") or not short):
        raise SettingError(f"metric must be train/, validation/ or test/ and a name, but is {metric!r}")
    if keys.better is not None:
        check_choice("better", keys.better, ("lower", "higher"))
    return Study(
        name=name,
        title=" ".join((keys.title or name).split()),
        question=" ".join(keys.question.split()),
        variants=tuple(variants),
        baseline=baseline,
        seeds=_seeds("seeds", keys.seeds),
        metric=metric,
        collect=tuple(dict.fromkeys(keys.collect)),
        axis=None if keys.axis is None else _axis(parsed(AxisKeys, keys.axis, "axis"), variants),
        better=keys.better,
    )


def _variants(given: Mapping[Any, Any], path: Path, *, is_function: bool) -> dict[str, tuple[Piece, ...]]:
    if not given:
        raise SettingError("variants must have at least one, by name, but is {}")
    variants: dict[str, tuple[Piece, ...]] = {}
    for name, listed in given.items():
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise SettingError(f"variants: YAML reads a name as {name!r}; put it into quotation marks")
        if not str(name).strip():
            raise SettingError("variants must have names, but one is blank")
        if str(name) in variants:
            raise SettingError(f"variants: {str(name)!r} is there twice")
        if is_function:
            variants[str(name)] = (_settings(f"variants.{name}", listed),)
        else:
            variants[str(name)] = pieces(f"variants.{name}", listed, path)
    return variants


def pieces(name: str, given: Any, path: Path) -> tuple[Piece, ...]:
    """Returns the pieces of a configuration from a value in a file.

    Args:
        name: Name of the key in the file, for error messages.
        given: A path, settings by name, or a list of these.
        path: Path of the file, in whose folder configurations are also looked up.

    Raises:
        SettingError: If there is no such configuration, or the value has another type.
    """
    listed = given if isinstance(given, list) else [given]
    return tuple(_piece(name, piece, path) for piece in listed if piece is not None and piece != {})


def _piece(name: str, piece: Any, path: Path) -> Piece:
    if isinstance(piece, str):
        # The current folder first, as in every other command; then the folder of the study file.
        found = [place for place in (Path(piece), path.parent / piece) if os.path.isfile(place)]
        if found:
            return found[0]
        if piece in shipped_configs():
            return Path(piece)  # a shipped name, valid on every machine
        beside = Path(piece).parent
        there = [file.as_posix() for file in beside.glob("*.yaml")] if os.path.isdir(beside) else []
        hint = did_you_mean(piece, there, most=3) or near_configs(piece)
        raise SettingError(f"{name} must name a configuration that exists, but {piece!r} doesn't{hint}")
    if isinstance(piece, dict):
        return _settings(name, piece)
    raise SettingError(
        f"{name} must be a configuration's path, or settings by name, or a list of these, but is {piece!r}"
    )


def _form(name: str, keys: FormKeys, path: Path) -> Form:
    return Form(
        seeds=None if keys.seeds is None else _seeds(f"{name}.seeds", keys.seeds),
        base=pieces(f"{name}.base", keys.base, path),
        arguments=_settings(f"{name}.arguments", keys.arguments),
        minutes=_minutes(f"{name}.minutes", keys.minutes),
    )


def _data_form(name: str, given: Any, path: Path) -> Form:
    keys = parsed(DataKeys, given, name)
    quick = _form(f"{name}.quick", parsed(FormKeys, keys.quick, f"{name}.quick"), path)
    return replace(_form(name, keys, path), quick=quick)


def _seeds(name: str, given: int | list[int]) -> tuple[int, ...]:
    if isinstance(given, int):
        check_seed_count(name, given)
        return tuple(range(given))
    if not given:
        raise SettingError(f"{name} must be at least one whole number, or how many there are from 0 on, but is []")
    for seed in given:
        check_count(name, seed, low=0)
    if len(set(given)) < len(given):
        raise SettingError(f"{name} must differ from one another, but are {given}")
    return tuple(given)


def _axis(keys: AxisKeys, variants: list[str]) -> Axis:
    if len(keys.values) != len(variants):
        raise SettingError(
            f"axis.values must have a number for each of the {len(variants)} variants, but has {len(keys.values)}"
        )
    for value in keys.values:
        check_range("axis.values", value, low=0 if keys.logarithmic else -math.inf, low_open=keys.logarithmic)
    return Axis(label=keys.label, values=tuple(keys.values), logarithmic=keys.logarithmic)


def _minutes(name: str, given: float | None) -> float | None:
    if given is not None:
        check_range(name, given, low=0)
    return given


def _settings(name: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise SettingError(f"{name} must be settings by name, but is {given!r}")
    return given
