"""The format of study files: keys and their types, as dataclasses that jsonargparse reads."""

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from lightning_reg.settings import SettingError, did_you_mean

__all__ = ["AxisKeys", "DataKeys", "FormKeys", "StudyKeys", "dumped", "keys_help", "parsed"]

T = TypeVar("T")

if TYPE_CHECKING:
    Settings = dict[Any, Any]
    Pieces = str | dict[Any, Any] | list[Any]
else:
    # If values have a type, even Any, jsonargparse converts text in them to numbers, and class_paths to classes.
    Settings = dict
    Pieces = str | dict | list


@dataclass
class FormKeys:
    """Keys of quick, the changes of the short form (--quick).

    Args:
        seeds: Seeds in place of the study's.
        base: Pieces appended to the study's base.
        arguments: Arguments of a computation that override the study's.
        minutes: Duration on two cores in minutes.
    """

    seeds: int | list[int] | None = None
    base: Pieces | None = None
    arguments: Settings = field(default_factory=dict)
    minutes: float | None = None


@dataclass
class DataKeys(FormKeys):
    """Keys of each data set in data, the changes for this data set (--data).

    Args:
        seeds: Seeds in place of the study's.
        base: Pieces appended to the study's base.
        arguments: Not used, because a computation has no data.
        minutes: Duration on two cores in minutes.
        quick: Changes of the short form on this data set, in addition to those on all.
    """

    quick: Settings = field(default_factory=dict)


@dataclass
class AxisKeys:
    """Keys of axis, for variants that differ in one number.

    Args:
        values: Number of each variant, in the order of the variants.
        label: Name of the number.
        logarithmic: Whether to use a logarithmic scale.
    """

    values: list[float]
    label: str = ""
    logarithmic: bool = False


@dataclass
class StudyKeys:
    """Keys of the study's file.

    Args:
        variants: Pieces that each variant appends to the base, by name: paths of configurations, settings by their
            command-line names, or a list of these; {} is the unchanged base. For a computation its arguments.
        seeds: A list of seeds, or their number (counted from 0); the same for every variant, for paired comparisons.
        base: Pieces of the run that variants change.
        repeat: Whether each seed also uses its own partition of the data (data.repeat).
        function: Dotted name of a function to compute, in place of a base.
        arguments: Arguments of the function, which variants change.
        title: Title of the report; by default the file's name.
        question: Question that the study answers.
        baseline: Variant that the others are compared with; by default the first.
        metric: Metric to compare: train/, validation/ or test/ and a name.
        better: Which values of the metric are better, lower or higher; by default derived from its name.
        collect: Results to keep in addition to metrics and curves: weights, activations, reload, predictions.
        axis: The number in which variants differ, if there is one.
        minutes: Duration of the study on two cores in minutes.
        quick: Changes of the short form.
        data: Changes for other data sets, by name (image_folder for a folder).
    """

    variants: Settings
    seeds: int | list[int]
    base: Pieces | None = None
    repeat: bool = False
    function: str | None = None
    arguments: Settings | None = None
    title: str = ""
    question: str = ""
    baseline: str | int | float | None = None
    metric: str | None = None
    better: str | None = None
    collect: list[str] = field(default_factory=list)
    axis: Settings | None = None
    minutes: float | None = None
    quick: Settings = field(default_factory=dict)
    data: Settings | None = None


_MUST_BE = {
    "variants": "at least one, by name",
    "seeds": "at least one whole number, or how many there are from 0 on",
    "base": "a configuration's path, or settings by name, or a list of these",
    "baseline": "the name of a variant",
    "collect": "a list of weights, activations, reload, predictions",
    "axis": "label, values and logarithmic by name",
    "minutes": "a number",
    "values": "a list of numbers",
    **dict.fromkeys(("repeat", "logarithmic"), "true or false"),
    **dict.fromkeys(("title", "question", "function", "metric", "better", "label"), "text"),
    **dict.fromkeys(("arguments", "quick", "data"), "settings by name"),
}


def parsed(kind: type[T], content: Any, where: str = "") -> T:
    """Parses a section of a study file, filling in defaults.

    Args:
        kind: Dataclass of the section, from this module.
        content: Content of the section, as read from the file.
        where: Name of the section, for error messages; empty for the whole file.

    Raises:
        SettingError: If a key is unknown, a value has the wrong type, or a required key is missing.
    """
    if not isinstance(content, dict):
        raise SettingError(f"{where or 'the file'} must be settings by name, but is {content!r}")
    known = [declared.name for declared in fields(kind)]  # type: ignore[arg-type]  # a dataclass
    for key in content:
        if key not in known:
            hint = did_you_mean(str(key), known, most=3)
            raise SettingError(f"{where or 'the file'} has {key!r}, which is none of {', '.join(known)}{hint}")
    given = {key: value for key, value in content.items() if value is not None}
    try:
        return kind(**_parser(kind).parse_object(given).as_dict())
    except ArgumentError as error:
        raise SettingError(_sentence(str(error), given, f"{where}." if where else "")) from error


def dumped(content: dict[str, Any]) -> str:
    """Returns a study file with all defaults, as YAML.

    Args:
        content: Content of a valid study file.
    """
    parser = _parser(StudyKeys)
    text: str = parser.dump(parser.parse_object({key: value for key, value in content.items() if value is not None}))
    return text


def keys_help() -> str:
    """Returns the section of ``--help`` about the file's keys."""
    return "\n".join(_help(kind) for kind in (StudyKeys, FormKeys, DataKeys, AxisKeys))


def _parser(kind: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(kind)
    return parser


def _help(kind: type) -> str:
    """Returns the parser's help without its usage line, with names as in a study file."""
    text = _parser(kind).format_help()
    text = re.sub(r"<class\s+'dict'>", "dict", text[text.index("\nKeys") :])
    text = re.sub(
        r"^  --(\w+)\S*.*?(?=\n|  )", lambda found: f"  {found[1]}".ljust(len(found[0])), text, flags=re.MULTILINE
    )
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def _sentence(message: str, content: dict[str, Any], where: str) -> str:
    """Condenses jsonargparse's error message, which lists all possible types of a value, into one sentence."""
    if found := re.search(r'Parser key "(\w+)"', message):
        name = found[1]
        return f"{where}{name} must be {_MUST_BE[name]}, but is {content[name]!r}"
    if found := re.search(r"arguments are required: (\w+)", message):
        return f"{where}{found[1]} is missing"
    return " ".join(message.split())
