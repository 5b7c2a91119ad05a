"""What a study file may say: its keys and their types, as dataclasses that jsonargparse reads."""

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
    # Where values have a type, if only Any, jsonargparse makes numbers of texts in them and classes of class_paths.
    Settings = dict
    Pieces = str | dict | list


@dataclass
class FormKeys:
    """Keys of quick, which is what --quick changes.

    Args:
        seeds: Instead of the study's.
        base: Pieces that are appended to the study's.
        arguments: Of a computation, over the study's.
        minutes: How long it takes on two cores.
    """

    seeds: int | list[int] | None = None
    base: Pieces | None = None
    arguments: Settings = field(default_factory=dict)
    minutes: float | None = None


@dataclass
class DataKeys(FormKeys):
    """Keys of each data set in data, which is what --data changes beside the data.

    Args:
        seeds: Instead of the study's.
        base: Pieces that are appended to the study's.
        arguments: Not used: a computation has no data.
        minutes: How long it takes on two cores.
        quick: What --quick changes on this data beside what it changes on any.
    """

    quick: Settings = field(default_factory=dict)


@dataclass
class AxisKeys:
    """Keys of axis, where variants differ in one number.

    Args:
        values: The number of each variant, in their order.
        label: What the number is.
        logarithmic: Whether equal factors, rather than equal differences, are equally far apart.
    """

    values: list[float]
    label: str = ""
    logarithmic: bool = False


@dataclass
class StudyKeys:
    """Keys of the study's file.

    Args:
        variants: By name, the pieces that each appends to the base: paths of configurations, settings by the names that
            they have on the command line, or a list of these; {} is the base as it is. Of a computation its arguments.
        seeds: A list, or how many from 0 on; the same for every variant, which pairs them.
        base: Pieces of the run that variants change.
        repeat: Whether each seed is a partition of the data of its own, too: data.repeat.
        function: Dotted name of a computation, in place of a base.
        arguments: Of the computation, which variants change.
        title: What the report begins with; the file's name where left out.
        question: What the study is to answer.
        baseline: The variant that others are compared with; the first where left out.
        metric: By which variants are compared: train/, validation/ or test/ and a name.
        better: Whether lower or higher values of the metric are better; its name tells where left out.
        collect: What is kept beside metrics and curves, of weights, activations, reload and predictions.
        axis: Where variants differ in one number.
        minutes: How long the study takes on two cores.
        data: By name of a data set (image_folder for a folder), what is different on it.
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
    "logarithmic": "true or false",
    **dict.fromkeys(("title", "question", "function", "metric", "better", "label"), "text"),
    **dict.fromkeys(("arguments", "quick", "data"), "settings by name"),
}


def parsed(kind: type[T], content: Any, where: str = "") -> T:
    """Returns a part of a study file, with the defaults of what it leaves out.

    Args:
        kind: Of the part, one of this module's.
        content: As it is in the file.
        where: The part's name; nothing for the whole file.

    Raises:
        SettingError: If it has a key that there isn't, a value of another type, or none where one is needed.
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
    """Returns a study file with the defaults of what it leaves out, as YAML.

    Args:
        content: Of a file that can be read.
    """
    parser = _parser(StudyKeys)
    text: str = parser.dump(parser.parse_object({key: value for key, value in content.items() if value is not None}))
    return text


def keys_help() -> str:
    """Returns what ``--help`` says of the file's keys."""
    return "\n".join(_help(kind) for kind in (StudyKeys, FormKeys, DataKeys, AxisKeys))


def _parser(kind: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(kind)
    return parser


def _help(kind: type) -> str:
    """Returns the parser's help without its usage, with names as they are in a file."""
    text = _parser(kind).format_help()
    text = re.sub(r"<class\s+'dict'>", "dict", text[text.index("\nKeys") :])
    text = re.sub(
        r"^  --(\w+)\S*.*?(?=\n|  )", lambda found: f"  {found[1]}".ljust(len(found[0])), text, flags=re.MULTILINE
    )
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def _sentence(message: str, content: dict[str, Any], where: str) -> str:
    """Returns in one sentence what jsonargparse tells of all types that a value could have had."""
    if found := re.search(r'Parser key "(\w+)"', message):
        name = found[1]
        return f"{where}{name} must be {_MUST_BE[name]}, but is {content[name]!r}"
    if found := re.search(r"arguments are required: (\w+)", message):
        return f"{where}{found[1]} is missing"
    return " ".join(message.split())
