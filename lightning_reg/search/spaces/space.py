"""Search spaces: sets of switches; a cocktail is a subset that is on, with strengths."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from typing_extensions import Self

from lightning_reg.search.spaces.ranges import Asked
from lightning_reg.search.spaces.switch import Switch
from lightning_reg.settings import SettingError, did_you_mean

__all__ = ["NOTHING", "Cocktail", "Space"]

NOTHING = "none"
"""Option of a group if none of its switches is on."""

Cocktail = Mapping[str, Mapping[str, Any]]
"""The switches that are on, each with its strengths by name."""


@dataclass(frozen=True)
class Space:
    """Switches, ordered by the evidence for them, which is the order in which they are tried alone.

    Attributes:
        name: Name of the space.
        title: Title of the space.
        switches: Switches by name.
        presets: Cocktails to try first, by name.
        conflicts: Pairs of switches that are never on together.
    """

    name: str
    title: str
    switches: Mapping[str, Switch] = field(hash=False)
    presets: Mapping[str, Cocktail] = field(default_factory=dict, hash=False)
    conflicts: frozenset[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not self.switches:
            raise SettingError(f"space {self.name!r} must have at least one switch, but is empty")
        for group in self.groups:
            if group in self.switches:
                raise SettingError(f"space {self.name!r} has {group!r} as a switch and as a group")

    @property
    def groups(self) -> dict[str, list[str]]:
        """Names of the switches of each group."""
        found: dict[str, list[str]] = {}
        for switch in self.switches.values():
            if switch.group is not None:
                found.setdefault(switch.group, []).append(switch.name)
        return found

    def are_compatible(self, first: str, second: str) -> bool:
        """Whether two switches may be on together.

        Args:
            first: Name of a switch.
            second: Name of another switch.
        """
        group = self.switches[first].group
        alike = group is not None and group == self.switches[second].group
        return not alike and frozenset((first, second)) not in self.conflicts

    def without(self, names: Collection[str]) -> Self:
        """Returns the space without some switches, and without presets that need them.

        Args:
            names: Names of the switches to leave out.

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
        """Returns a cocktail's callbacks, as in a configuration."""
        return [entry for name, values in cocktail.items() for entry in self.switches[name].realized(values)[1]]

    def suggest(self, trial: Asked) -> dict[str, dict[str, Any]]:
        """Returns the cocktail that a trial proposes, which never contains a conflict."""
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
        # A parameter must always have the same options, so one with fewer options gets another name.
        parameter = group if left == members else f"{group} of {', '.join(left)}"
        found: str = trial.suggest_categorical(parameter, [NOTHING, *left])
        return None if found == NOTHING else found

    def parameters(self, cocktail: Cocktail) -> dict[str, Any]:
        """Returns the parameters of a trial that result in a cocktail.

        Args:
            cocktail: A cocktail of compatible switches.

        Raises:
            SettingError: If the switches aren't compatible.
        """
        recorder = _Recorder(self, cocktail)
        if self.suggest(recorder) != {name: dict(cocktail[name]) for name in self.switches if name in cocktail}:
            raise SettingError(f"{', '.join(cocktail)} must be compatible, but aren't")
        return recorder.parameters

    def check(self, cocktail: Cocktail, where: str) -> dict[str, dict[str, Any]]:
        """Validates a cocktail and fills in missing strengths with the usual ones.

        Args:
            cocktail: Switches with some of their strengths.
            where: Name of the cocktail, for error messages.

        Raises:
            SettingError: If a switch or strength is unknown, or two switches are incompatible.
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
    """Proposes a given cocktail, and records the parameters it was asked for."""

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
