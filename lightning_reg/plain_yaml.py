"""Reading untrusted YAML as plain values, within limits that are checked before any value is constructed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lightning_reg.settings import SettingError

__all__ = ["check_yaml", "parsed_yaml"]

_MAX_DEPTH = 64
_MAX_NODES = 100_000
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map")}

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the latter where libyaml is missing


class _Loader(_SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads 1e-4 as a number, as command lines do; YAML 1.1 requires a decimal point."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parsed_yaml(name: str, text: str) -> Any:
    """Returns the plain values of a YAML text.

    Args:
        name: Name of the text, for error messages.

    Raises:
        SettingError: Like `check_yaml`, and if the text is no plain YAML.
    """
    check_yaml(name, text)
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except KeyError as error:
        raise SettingError(f"{name} isn't plain YAML: {error} is no value of its tag") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError: a date such as 2001-99-99
        raise SettingError(f"{name} isn't plain YAML: {_one_line(error)}") from error


@dataclass
class _Open:
    """A mapping or a list whose end hasn't been read yet."""

    anchor: str | None
    is_mapping: bool
    nodes: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


def check_yaml(name: str, text: str) -> None:
    """Raises unless a text is a single YAML document of plain values, within limits of depth and size.

    Parser events are checked one by one, before anything large is constructed; an alias counts as many values as it
    stands for.

    Args:
        name: Name of the text, for error messages.

    Raises:
        SettingError: If it isn't YAML or has tags (``!!python/...``), with a ``YAMLError`` as the cause; or if it has a
            key twice, a list or a mapping as a key, anchors that contain themselves, several documents, is too deep, or
            has too many values.

    >>> check_yaml("config", "trainer: &t {logger: *t}")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: config must hold plain values, but line 1 has an alias *t of what it lies in
    """
    try:
        _check_events(name, text)
    except yaml.YAMLError as error:
        raise SettingError(f"{name} isn't plain YAML: {_one_line(error)}") from error


def _check_events(name: str, text: str) -> None:
    open_: list[_Open] = [_Open(None, is_mapping=False)]
    sizes: dict[str, int] = {}  # of what each anchor stands for, with all aliases expanded
    documents = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise SettingError(f"{name} must be one YAML document, but {line} begins another")
        elif isinstance(event, yaml.CollectionEndEvent):
            done = open_.pop()
            if done.anchor is not None:
                sizes[done.anchor] = done.nodes
            open_[-1].nodes += done.nodes
        elif isinstance(event, yaml.NodeEvent):
            _check_node(name, line, event, open_[-1])
            if isinstance(event, yaml.CollectionStartEvent):
                sizes.pop(event.anchor, None)
                open_.append(_Open(event.anchor, is_mapping=isinstance(event, yaml.MappingStartEvent)))
            else:
                size = _size_of_alias(name, line, event, sizes, open_) if isinstance(event, yaml.AliasEvent) else 1
                open_[-1].nodes += size
                if event.anchor is not None:
                    sizes[event.anchor] = size
        if len(open_) > _MAX_DEPTH:
            raise SettingError(f"{name} must be at most {_MAX_DEPTH} levels deep, but is deeper at {line}")
        if sum(collection.nodes for collection in open_) > _MAX_NODES:
            raise SettingError(f"{name} must come to at most {_MAX_NODES:,} values, but comes to more at {line}")


def _size_of_alias(
    name: str, line: str, event: yaml.AliasEvent, sizes: Mapping[str, int], open_: Sequence[_Open]
) -> int:
    if event.anchor in sizes:
        return sizes[event.anchor]
    if any(collection.anchor == event.anchor for collection in open_):
        raise SettingError(f"{name} must hold plain values, but {line} has an alias *{event.anchor} of what it lies in")
    raise yaml.MarkedYAMLError(problem=f"*{event.anchor} stands for nothing before it", problem_mark=event.start_mark)


def _check_node(name: str, line: str, event: yaml.NodeEvent, parent: _Open) -> None:
    tag = getattr(event, "tag", None)
    if tag not in (None, "!", *_PLAIN_TAGS):
        shown = str(tag).replace("tag:yaml.org,2002:", "!!")
        raise yaml.MarkedYAMLError(problem=f"the tag {shown} makes no plain value", problem_mark=event.start_mark)
    is_key = parent.is_mapping and parent.children % 2 == 0
    if not is_key and getattr(event, "value", None) == "=" and event.implicit[0]:
        raise yaml.MarkedYAMLError(problem="= is text in quotes alone, '='", problem_mark=event.start_mark)
    if is_key:
        if isinstance(event, yaml.CollectionStartEvent):
            raise SettingError(f"{name} must have names as keys, but {line} has a list or a mapping in a key's place")
        key = getattr(event, "value", None)
        if key in parent.keys:
            raise SettingError(f"{name} must have every key once, but {line} has {key!r} again")
        if key is not None and key != "<<":
            parent.keys.add(key)
    parent.children += 1


def _one_line(error: Exception) -> str:
    """Returns the problem and its position, without the excerpt that YAML adds."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:
        return " ".join(str(error).split())
    return problem if mark is None else f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
