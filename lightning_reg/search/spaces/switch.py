"""Switches: techniques that are on or off, with strengths in ranges."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_reg.search.spaces.ranges import Asked, Options, Range
from lightning_reg.settings import SettingError, did_you_mean

__all__ = ["Strength", "Switch"]

_STRUCTURE = ("class_path", "init_args")


@dataclass(frozen=True)
class Strength:
    """A setting of a switch that a trial chooses.

    Attributes:
        name: Name of the strength, unique in the switch.
        range: Range of its values.
        needs: Names of other strengths with the options they must have for this one to apply.
    """

    name: str
    range: Range
    needs: tuple[tuple[str, Any], ...] = ()

    def is_asked(self, values: Mapping[str, Any]) -> bool:
        """Whether the strength applies, given those chosen so far.

        Args:
            values: Chosen strengths of the switch, by name.
        """
        return all(values.get(name) == option for name, option in self.needs)


@dataclass(frozen=True)
class Switch:
    """A technique that is on or off: a piece of a configuration with ranges in place of strengths.

    Attributes:
        name: Name of the switch.
        title: Title for reports.
        settings: Settings if it is on, by their command-line names.
        without: Settings if it is off, by their command-line names.
        callbacks: Callbacks that it adds, as in a configuration; callbacks of the base of the same classes are removed.
        group: Name of a group, of which at most one switch is on; None if it is independent.
        is_optional: Whether to leave it out if it doesn't apply to the base, instead of raising an error.
    """

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    without: Mapping[str, Any] = field(default_factory=dict, hash=False)
    callbacks: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    group: str | None = None
    is_optional: bool = False

    @property
    def strengths(self) -> list[Strength]:
        """Strengths that a trial chooses; those that others depend on come first."""
        found = list(_found({"set": self.settings, "callbacks": list(self.callbacks)}, ()))
        return _named(found)

    def usual(self) -> dict[str, Any]:
        """Returns the strengths to try first."""
        values: dict[str, Any] = {}
        for strength in self.strengths:
            if strength.is_asked(values):
                values[strength.name] = strength.range.usual
        return values

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Validates strengths and fills in missing ones with the usual values.

        Raises:
            SettingError: If a strength is unknown, or out of its range.
        """
        known = {strength.name: strength for strength in self.strengths}
        for name, value in given.items():
            if name not in known:
                hint = did_you_mean(name, known)
                there = ", ".join(known) or "no strengths"
                raise SettingError(f"{self.name} must have strengths among {there}, but has {name!r}{hint}")
            known[name].range.check(f"{self.name}.{name}", value)
        values: dict[str, Any] = {}
        for strength in known.values():
            if strength.is_asked(values):
                values[strength.name] = given.get(strength.name, strength.range.usual)
        return values

    def realized(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Returns the settings and the callbacks of the switch at the given strengths."""
        names = dict(zip(*self._paths(), strict=True))
        content = _filled({"set": self.settings, "callbacks": list(self.callbacks)}, (), names, values)
        return content["set"], content["callbacks"]

    def _paths(self) -> tuple[list[tuple[Any, ...]], list[str]]:
        found = list(_found({"set": self.settings, "callbacks": list(self.callbacks)}, ()))
        return [path for path, _, _ in found], [strength.name for strength in _named(found)]

    def suggest(self, trial: Asked) -> dict[str, Any]:
        """Returns the strengths that a trial proposes."""
        values: dict[str, Any] = {}
        for strength in self.strengths:
            if strength.is_asked(values):
                values[strength.name] = strength.range.suggest(trial, f"{self.name}.{strength.name}")
        return values


_Found = tuple[tuple[Any, ...], Range, tuple[tuple[tuple[Any, ...], Any], ...]]


def _found(template: Any, path: tuple[Any, ...], needs: tuple[Any, ...] = ()) -> Iterator[_Found]:
    """Yields every range in a template, with its path and the options it depends on."""
    if isinstance(template, Range):
        yield path, template, needs
        if isinstance(template, Options):
            for option, value in template.values.items():
                yield from _found(value, (*path, option), (*needs, (path, option)))
    elif isinstance(template, Mapping):
        for key, value in template.items():
            yield from _found(value, (*path, key), needs)
    elif isinstance(template, list):
        for index, value in enumerate(template):
            yield from _found(value, (*path, index), needs)


def _named(found: Sequence[_Found]) -> list[Strength]:
    """Names each range by the shortest unique suffix of its path."""
    paths = [[str(key) for key in path[1:] if key not in _STRUCTURE] for path, _, _ in found]
    paths = [[*path[:-1], path[-1].rpartition(".")[2]] if path else ["value"] for path in paths]
    names = []
    for path in paths:
        length = 1
        while length < len(path) and sum(other[-length:] == path[-length:] for other in paths) > 1:
            length += 1
        names.append(".".join(path[-length:]))
    by_path = {path: name for (path, _, _), name in zip(found, names, strict=True)}
    return [
        Strength(name, range_, tuple((by_path[where], option) for where, option in needs))
        for (_, range_, needs), name in zip(found, names, strict=True)
    ]


def _filled(
    template: Any, path: tuple[Any, ...], names: Mapping[tuple[Any, ...], str], values: Mapping[str, Any]
) -> Any:
    """Returns a template with values in place of ranges."""
    if isinstance(template, Range):
        value = values[names[path]]
        if isinstance(template, Options):
            return _filled(template.values[value], (*path, value), names, values)
        return value
    if isinstance(template, Mapping):
        return {key: _filled(value, (*path, key), names, values) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, (*path, index), names, values) for index, value in enumerate(template)]
    return template
