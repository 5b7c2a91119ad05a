"""What can be tried: switches, each on or off and with strengths of its own; a cocktail is what is on."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_reg.search.ranges import Asked, Options, Range
from lightning_reg.settings import SettingError, did_you_mean

__all__ = ["NOTHING", "Callbacks", "Cocktail", "Preset", "Space", "Strength", "Switch"]

NOTHING = "none"
"""What a group proposes where none of its switches is on."""

Cocktail = Mapping[str, Mapping[str, Any]]
"""The switches that are on, each with its strengths by name."""

Preset = Cocktail
Callbacks = Sequence[Mapping[str, Any]]
"""Callbacks as a configuration has them: class_path, init_args."""

_STRUCTURE = ("class_path", "init_args")


@dataclass(frozen=True)
class Strength:
    """A setting of a switch that a trial chooses.

    Attributes:
        name: Unique in its switch.
        range: From which it is chosen.
        needs: Names of choices with the option that each must have for this one to be asked.
    """

    name: str
    range: Range
    needs: tuple[tuple[str, Any], ...] = ()

    def is_asked(self, values: Mapping[str, Any]) -> bool:
        """Whether the strength means something beside those that have been chosen.

        Args:
            values: Strengths of the switch by name.
        """
        return all(values.get(name) == option for name, option in self.needs)


@dataclass(frozen=True)
class Switch:
    """A technique that is on or off: a piece of a configuration with ranges in the places of strengths.

    Attributes:
        settings: What is set where it is on, by the names that settings have on the command line.
        without: What is set where it is off.
        callbacks: Those that it adds; where it is off, the base's of these classes are left out.
        group: Of which one switch is on at the most; alone where None.
        is_optional: Whether it is passed over where the base can't have it, rather than refused.
    """

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    without: Mapping[str, Any] = field(default_factory=dict, hash=False)
    callbacks: Callbacks = field(default=(), hash=False)
    group: str | None = None
    is_optional: bool = False

    @property
    def strengths(self) -> list[Strength]:
        """What a trial chooses, choices before what depends on them."""
        found = list(_found({"set": self.settings, "callbacks": list(self.callbacks)}, ()))
        return _named(found)

    def usual(self) -> dict[str, Any]:
        """Returns the strengths that are tried first."""
        values: dict[str, Any] = {}
        for strength in self.strengths:
            if strength.is_asked(values):
                values[strength.name] = strength.range.usual
        return values

    def completed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns strengths, with the usual ones where none is given.

        Raises:
            SettingError: If there is no such strength, or it is out of its range.
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
        """Returns the settings and the callbacks that the switch comes to.

        Args:
            values: Its strengths by name.
        """
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
    """Yields every range in a template, with where it is and which options lead there."""
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
    """Gives each range the end of its path as its name, as long as it takes to tell them apart."""
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
    """Returns a template with values in the places of ranges."""
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


@dataclass(frozen=True)
class Space:
    """Switches in the order in which they are tried alone, which is that of the evidence for them.

    Attributes:
        presets: Cocktails that are tried first, by name.
        conflicts: Pairs of switches that are never on together.
    """

    name: str
    title: str
    switches: Mapping[str, Switch] = field(hash=False)
    presets: Mapping[str, Preset] = field(default_factory=dict, hash=False)
    conflicts: frozenset[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not self.switches:
            raise SettingError(f"space {self.name!r} must have at least one switch, but is empty")
        for group in self.groups:
            if group in self.switches:
                raise SettingError(f"space {self.name!r} has {group!r} as a switch and as a group")

    @property
    def groups(self) -> dict[str, list[str]]:
        """The switches of each group."""
        found: dict[str, list[str]] = {}
        for switch in self.switches.values():
            if switch.group is not None:
                found.setdefault(switch.group, []).append(switch.name)
        return found

    def are_compatible(self, first: str, second: str) -> bool:
        """Whether two switches may be on together.

        Args:
            first: Name of a switch.
        """
        group = self.switches[first].group
        alike = group is not None and group == self.switches[second].group
        return not alike and frozenset((first, second)) not in self.conflicts

    def without(self, names: Collection[str]) -> "Space":
        """Returns the space without some switches, and without presets that need them.

        Args:
            names: Of switches that are left out.

        Raises:
            SettingError: If nothing is left.
        """
        kept = {name: switch for name, switch in self.switches.items() if name not in names}
        if not kept:
            raise SettingError(f"space {self.name!r} must have at least one switch, but all are left out")
        presets = {name: preset for name, preset in self.presets.items() if not set(preset) & set(names)}
        conflicts = frozenset(pair for pair in self.conflicts if not pair & set(names))
        return replace(self, switches=kept, presets=presets, conflicts=conflicts)

    def alone(self, name: str) -> Cocktail:
        """Returns the cocktail of one switch at its usual strengths."""
        return {name: self.switches[name].usual()}

    def callbacks_of(self, cocktail: Cocktail) -> list[dict[str, Any]]:
        """Returns a cocktail's callbacks as a configuration has them."""
        return [entry for name, values in cocktail.items() for entry in self.switches[name].realized(values)[1]]

    def suggest(self, trial: Asked) -> dict[str, dict[str, Any]]:
        """Returns the cocktail that a trial proposes: never one that holds a conflict."""
        chosen: dict[str, dict[str, Any]] = {}
        asked: set[str] = set()
        for name, switch in self.switches.items():
            if switch.group is None:
                if all(self.are_compatible(name, other) for other in chosen) and trial.suggest_categorical(
                    name, [False, True]
                ):
                    chosen[name] = switch.suggest(trial)
            elif switch.group not in asked:
                asked.add(switch.group)
                member = self._member(trial, switch.group, chosen)
                if member is not None:
                    chosen[member] = self.switches[member].suggest(trial)
        return {name: chosen[name] for name in self.switches if name in chosen}

    def _member(self, trial: Asked, group: str, chosen: Collection[str]) -> str | None:
        members = self.groups[group]
        left = [name for name in members if all(self.are_compatible(name, other) for other in chosen)]
        if not left:
            return None
        # A parameter has the same options always, so that of fewer options is another.
        parameter = group if left == members else f"{group} of {', '.join(left)}"
        found: str = trial.suggest_categorical(parameter, [NOTHING, *left])
        return None if found == NOTHING else found

    def parameters(self, cocktail: Cocktail) -> dict[str, Any]:
        """Returns what a trial has to propose for a cocktail to come of it.

        Args:
            cocktail: Whose switches are compatible.
        """
        recorder = _Recorder(self, cocktail)
        if self.suggest(recorder) != {name: dict(cocktail[name]) for name in self.switches if name in cocktail}:
            raise SettingError(f"{', '.join(cocktail)} must be compatible, but aren't")
        return recorder.parameters

    def check(self, cocktail: Cocktail, where: str) -> dict[str, dict[str, Any]]:
        """Returns a cocktail with all of its strengths.

        Args:
            cocktail: As it was written.
            where: Its name, for messages.

        Raises:
            SettingError: If there is no such switch or strength, or two of them can't be on together.
        """
        for name in cocktail:
            if name not in self.switches:
                hint = did_you_mean(name, self.switches)
                raise SettingError(f"{where} must have switches of the space, but has {name!r}{hint}")
        names = list(cocktail)
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                if not self.are_compatible(first, second):
                    raise SettingError(f"{where} must not have both {first!r} and {second!r}: one of them can be on")
        return {name: self.switches[name].completed(cocktail[name]) for name in self.switches if name in cocktail}


@dataclass
class _Recorder:
    """Proposes a cocktail, and keeps what it was asked for."""

    space: Space
    cocktail: Cocktail
    parameters: dict[str, Any] = field(default_factory=dict)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self._strength(name))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self._strength(name))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name in self.space.switches:
            value: Any = name in self.cocktail
        elif name.partition(" of ")[0] in self.space.groups:
            value = next((choice for choice in choices if choice in self.cocktail), NOTHING)
        else:
            return self._strength(name)
        self.parameters[name] = value
        return value

    def _strength(self, name: str) -> Any:
        switch = next(switch_name for switch_name in self.space.switches if name.startswith(f"{switch_name}."))
        value = self.parameters[name] = self.cocktail[switch][name.removeprefix(f"{switch}.")]
        return value
