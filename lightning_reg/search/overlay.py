"""Applies a cocktail to the settings of a base, which are addressed by their command-line names."""

import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from lightning_reg.search.spaces.space import Cocktail, Space
from lightning_reg.search.spaces.switch import Switch
from lightning_reg.settings import SettingError, did_you_mean

__all__ = [
    "absent_settings",
    "class_of",
    "differences",
    "names_of",
    "put",
    "replaced_callbacks",
    "value_of",
    "with_cocktail",
]

Settings = dict[str, Any]

_CALLBACKS = "trainer.callbacks"


def names_of(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the command-line names of all settings, which omit ``init_args``.

    Args:
        settings: Nested settings, as in a configuration.

    >>> list(names_of({"model": {"class_path": "MLP", "init_args": {"norm": "batch"}}}))
    ['model', 'model.norm']
    """
    for key, value in settings.items():
        if key == "class_path" and "." in prefix:
            continue
        name = prefix.rstrip(".") if key == "init_args" else f"{prefix}{key}"
        if key not in ("init_args", "class_path"):
            yield name
        if isinstance(value, Mapping):
            yield from names_of(value, f"{name}.")


def _holder(settings: Mapping[str, Any], name: str) -> tuple[Any, str] | None:
    """Returns the mapping that contains a setting, and its key there; None if there is no such setting."""
    holder: Any = settings
    *parents, last = name.split(".")
    for parent in parents:
        holder = _within(holder).get(parent)
        if not isinstance(holder, Mapping):
            return None
    holder = _within(holder, last)
    return (holder, last) if last in holder else None


def _within(holder: Mapping[str, Any], key: str = "") -> Mapping[str, Any]:
    if "class_path" in holder and key not in ("class_path", "init_args"):
        return holder.get("init_args") or {}
    return holder


def value_of(settings: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a setting; None if there is no such setting.

    Args:
        settings: Nested settings, as in a configuration.
        name: Command-line name of the setting.
    """
    found = _holder(settings, name)
    return None if found is None else found[0][found[1]]


def put(settings: Settings, name: str, value: Any) -> None:
    """Sets the value of an existing setting.

    Args:
        settings: Nested settings, as in a configuration; changed in place.
        name: Command-line name of the setting.
        value: New value, which is copied.

    Raises:
        SettingError: If there is no such setting.
    """
    found = _holder(settings, name)
    if found is None:
        hint = did_you_mean(name, names_of(settings))
        raise SettingError(f"the base has no setting {name!r}{hint}")
    found[0][found[1]] = deepcopy(value)


def absent_settings(switch: Switch, base: Mapping[str, Any]) -> list[str]:
    """Returns the settings of a switch that a base doesn't have."""
    names = [*switch.settings, *switch.without]
    return [name for name in dict.fromkeys(names) if _holder(base, name) is None]


def class_of(entry: Mapping[str, Any]) -> type | None:
    """Returns the class of a configured callback; None if it can't be imported.

    Args:
        entry: A mapping with ``class_path``.
    """
    try:
        found = pkgutil.resolve_name(str(entry.get("class_path")))
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None


def replaced_callbacks(space: Space, base: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the names of the base's callbacks that each switch replaces, by switch."""
    found: dict[str, list[str]] = {}
    for switch in space.switches.values():
        kinds = [class_of(entry) for entry in switch.callbacks]
        names = [kind.__name__ for entry in _callbacks(base) if (kind := class_of(entry)) is not None and kind in kinds]
        if names:
            found[switch.name] = names
    return found


def _callbacks(settings: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = value_of(settings, _CALLBACKS) or []
    return found if isinstance(found, list) else [found]


def with_cocktail(space: Space, base: Mapping[str, Any], cocktail: Cocktail) -> Settings:
    """Returns the base with the cocktail's switches on, and all others of the space off.

    The space overrides the base: settings that a switch sets, and callbacks of the classes that a switch adds.

    Args:
        space: Search space of the cocktail.
        base: Settings of the base, as in a configuration.
        cocktail: Switches that are on, with their strengths.

    Raises:
        SettingError: If a switch sets a setting that the base doesn't have, or isn't in the space.
    """
    for unknown in cocktail.keys() - space.switches.keys():
        raise SettingError(f"a cocktail must have switches of its space, but has {unknown!r}")
    made = deepcopy(dict(base))
    kinds = {class_of(entry) for switch in space.switches.values() for entry in switch.callbacks}
    callbacks = [entry for entry in _callbacks(made) if class_of(entry) not in kinds]
    for switch in space.switches.values():
        for name, value in switch.without.items():
            put(made, name, value)
    for switch_name, values in cocktail.items():
        settings, added = space.switches[switch_name].realized(values)
        for name, value in settings.items():
            put(made, name, value)
        callbacks += added
    if callbacks != list(_callbacks(made)):
        put(made, _CALLBACKS, callbacks)
    return made


def differences(space: Space, base: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a cocktail changes in the base, by their command-line names.

    Args:
        space: Search space of the cocktail.
        base: Settings of the base, as in a configuration.
        made: Settings as returned by :func:`with_cocktail`.
    """
    names = [name for switch in space.switches.values() for name in (*switch.settings, *switch.without)]
    return {
        name: value_of(made, name)
        for name in dict.fromkeys([*names, _CALLBACKS])
        if value_of(made, name) != value_of(base, name)
    }
