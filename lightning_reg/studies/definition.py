"""A study as its file defines it, checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_reg.settings import SettingError, check_choice, check_count, check_range, near_matches
from lightning_reg.studies.outcome import Axis, Study
from lightning_reg.studies.study_file import load_yaml

__all__ = ["COLLECTORS", "Definition", "Form", "Piece", "read_study"]

Piece = Path | Mapping[str, Any]
"""The path of a configuration, or settings by the names that they have on the command line."""

COLLECTORS = ("weights", "activations", "reload", "predictions")
"""What can be kept of each run beside metrics and curves."""

_KEYS = (
    "title",
    "question",
    "base",
    "variants",
    "baseline",
    "seeds",
    "metric",
    "better",
    "collect",
    "axis",
    "quick",
    "data",
    "minutes",
    "function",
    "arguments",
)
_FORM_KEYS = ("seeds", "base", "arguments", "minutes")
_DATA_KEYS = (*_FORM_KEYS, "quick")


@dataclass(frozen=True)
class Form:
    """What the short form of a study, or that on other data, does differently.

    Attributes:
        seeds: Instead of the study's; as they are where None.
        base: Pieces that are appended to the base.
        arguments: Of a computation, over the study's.
        minutes: How long it takes; unknown where None.
        quick: Of a form on other data: what the short form does differently on it, beside what it does on any.
    """

    seeds: tuple[int, ...] | None = None
    base: tuple[Piece, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    quick: "Form | None" = None


@dataclass(frozen=True)
class Definition:
    """What a study file says.

    Attributes:
        study: What is compared.
        base: Pieces of the run that variants change; none for a computation.
        variants: Pieces by variant; of a computation one mapping of arguments.
        function: Dotted name of a computation; None where networks are trained.
        arguments: Of the computation, that variants change.
        quick: The short form.
        data: What is different on other data, by the data set's name.
        minutes: How long the full form takes on two cores; unknown where None.
    """

    study: Study
    base: tuple[Piece, ...]
    variants: Mapping[str, tuple[Piece, ...]]
    function: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    quick: Form = field(default_factory=Form)
    data: Mapping[str, Form] = field(default_factory=dict)
    minutes: float | None = None

    def in_form(self, form: Form) -> "Definition":
        """Returns the study with what a form does differently.

        Args:
            form: That is applied.
        """
        study = self.study if form.seeds is None else replace(self.study, seeds=form.seeds)
        arguments = {**self.arguments, **form.arguments}
        return replace(self, study=study, base=(*self.base, *form.base), arguments=arguments, minutes=form.minutes)

    def on(self, place: Piece) -> "Definition":
        """Returns the study with settings after those of the base.

        Args:
            place: That say where its data lies; none of them may be there.
        """
        return replace(self, base=(*self.base, place)) if place else self

    def with_seeds(self, count: int) -> "Definition":
        """Returns the study with seeds from 0 on.

        Args:
            count: How many.
        """
        check_count("seeds", count)
        minutes = None if self.minutes is None else self.minutes * count / len(self.study.seeds)
        return replace(self, study=replace(self.study, seeds=tuple(range(count))), minutes=minutes)

    def only(self, names: Sequence[str]) -> "Definition":
        """Returns the study with some of its variants, in its own order.

        Args:
            names: Of the variants.

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
    """Reads a study file and checks all that can be checked without its configurations.

    Args:
        path: Of the file.

    Raises:
        SettingError: With what is wrong and where.
    """
    path = Path(path)
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise SettingError(f"study file {str(path)!r} must hold settings by name, title, base and variants among them")
    try:
        return _definition(content, path)
    except SettingError as error:
        raise SettingError(f"study file {str(path)!r}: {error}") from error


def _definition(content: dict[Any, Any], path: Path) -> Definition:
    _check_keys("the file", content, _KEYS)
    function = content.get("function")
    for name in ("arguments",) if function is None else ("base", "data"):
        if name in content:
            raise SettingError(
                f"{name} must be left out of a study {'without' if function is None else 'of'} a function"
            )
    needed = ["variants", "seeds", *(["base"] if function is None else ["metric"])]
    for name in needed:
        if name not in content:
            raise SettingError(f"{name} is missing")
    variants = _variants(content["variants"], path, is_function=function is not None)
    data = _mapping("data", content.get("data", {}))
    return Definition(
        study=_study(content, path.stem, list(variants)),
        base=_pieces("base", content["base"], path) if function is None else (),
        variants=variants,
        function=function,
        arguments=_mapping("arguments", content.get("arguments", {})),
        quick=_form("quick", content.get("quick", {}), path),
        data={str(name): _form(f"data.{name}", form, path, keys=_DATA_KEYS) for name, form in data.items()},
        minutes=_minutes("minutes", content.get("minutes")),
    )


def _study(content: Mapping[str, Any], name: str, variants: list[str]) -> Study:
    baseline = str(content.get("baseline", variants[0]))
    check_choice("baseline", baseline, variants)
    collect = content.get("collect", [])
    if not isinstance(collect, list):
        raise SettingError(f"collect must be a list of {', '.join(COLLECTORS)}, but is {collect!r}")
    for each in collect:
        check_choice("collect", each, COLLECTORS)
    metric = content.get("metric", "test/accuracy")
    split, _, short = str(metric).partition("/")
    if "function" not in content and (split not in ("train", "validation", "test") or not short):
        raise SettingError(f"metric must be train/, validation/ or test/ and a name, but is {metric!r}")
    better = content.get("better")
    if better is not None:
        check_choice("better", better, ("lower", "higher"))
    return Study(
        name=name,
        title=" ".join(str(content.get("title", name)).split()),
        question=" ".join(str(content.get("question", "")).split()),
        variants=tuple(variants),
        baseline=baseline,
        seeds=_seeds("seeds", content["seeds"]),
        metric=str(metric),
        collect=tuple(dict.fromkeys(collect)),
        axis=_axis(content.get("axis"), variants),
        better=better,
    )


def _variants(given: Any, path: Path, *, is_function: bool) -> dict[str, tuple[Piece, ...]]:
    if not isinstance(given, dict) or not given:
        raise SettingError(f"variants must have at least one, by name, but is {given!r}")
    variants: dict[str, tuple[Piece, ...]] = {}
    for name, pieces in given.items():
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise SettingError(f"variants: YAML reads a name as {name!r}; put it into quotation marks")
        if str(name) in variants:
            raise SettingError(f"variants: {str(name)!r} is there twice")
        if is_function:
            variants[str(name)] = (_mapping(f"variants.{name}", pieces),)
        else:
            variants[str(name)] = _pieces(f"variants.{name}", pieces, path)
    return variants


def _pieces(name: str, given: Any, path: Path) -> tuple[Piece, ...]:
    pieces = given if isinstance(given, list) else [given]
    return tuple(_piece(name, piece, path) for piece in pieces if piece is not None and piece != {})


def _piece(name: str, piece: Any, path: Path) -> Piece:
    if isinstance(piece, str):
        # As every other command has it; a file of one's own may lie beside what it names.
        found = [place for place in (Path(piece), path.parent / piece) if place.is_file()]
        if found:
            return found[0]
        beside = Path(piece).parent
        there = [each.as_posix() for each in beside.glob("*.yaml")] if beside.is_dir() else []
        raise SettingError(f"{name} must name a configuration that exists, but {piece!r} doesn't{_hint(piece, there)}")
    if isinstance(piece, dict):
        return _mapping(name, piece)
    raise SettingError(
        f"{name} must be a configuration's path, or settings by name, or a list of these, but is {piece!r}"
    )


def _form(name: str, given: Any, path: Path, keys: Sequence[str] = _FORM_KEYS) -> Form:
    given = _mapping(name, given)
    _check_keys(name, given, keys)
    return Form(
        seeds=_seeds(f"{name}.seeds", given["seeds"]) if "seeds" in given else None,
        base=_pieces(f"{name}.base", given.get("base"), path),
        arguments=_mapping(f"{name}.arguments", given.get("arguments", {})),
        minutes=_minutes(f"{name}.minutes", given.get("minutes")),
        quick=_form(f"{name}.quick", given["quick"], path) if "quick" in given else None,
    )


def _seeds(name: str, given: Any) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool):
        check_count(name, given)
        return tuple(range(given))
    if not isinstance(given, list) or not given:
        raise SettingError(
            f"{name} must be at least one whole number, or how many there are from 0 on, but is {given!r}"
        )
    for seed in given:
        check_count(name, seed, low=0)
    if len(set(given)) < len(given):
        raise SettingError(f"{name} must differ from one another, but are {given}")
    return tuple(given)


def _axis(given: Any, variants: list[str]) -> Axis | None:
    if given is None:
        return None
    given = _mapping("axis", given)
    _check_keys("axis", given, ("label", "values", "logarithmic"))
    values = given.get("values")
    if not isinstance(values, list) or len(values) != len(variants):
        count = len(values) if isinstance(values, list) else "none"
        raise SettingError(f"axis.values must have a number for each of the {len(variants)} variants, but has {count}")
    for value in values:
        check_range("axis.values", value)
    logarithmic = given.get("logarithmic", False)
    if not isinstance(logarithmic, bool):
        raise SettingError(f"axis.logarithmic must be true or false, but is {logarithmic!r}")
    if logarithmic:
        for value in values:
            check_range("axis.values", value, low=0, low_open=True)
    return Axis(label=str(given.get("label", "")), values=tuple(values), logarithmic=logarithmic)


def _minutes(name: str, given: Any) -> float | None:
    if given is None:
        return None
    check_range(name, given, low=0)
    return float(given)


def _mapping(name: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise SettingError(f"{name} must be settings by name, but is {given!r}")
    return given


def _check_keys(where: str, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            near = _hint(str(key), known)
            raise SettingError(f"{where} has {key!r}, which is none of {', '.join(known)}{near}")


def _hint(value: str, options: Sequence[str]) -> str:
    near = near_matches(value, options)
    return f"; did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
