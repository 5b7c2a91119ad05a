"""What a cocktail makes of a base: settings as a configuration has them, changed by their names on the command line."""

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
    """Yields all settings by the names that they have on the command line, which leave out ``init_args``.

    Args:
        settings: As a configuration has them.

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
    """Returns the mapping that a setting lies in, and its key there; None where there is no such setting."""
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
    """Returns a setting; None where there is none of that name.

    Args:
        settings: As a configuration has them.
        name: On the command line.
    """
    found = _holder(settings, name)
    return None if found is None else found[0][found[1]]


def put(settings: Settings, name: str, value: Any) -> None:
    """Sets a setting that there is.

    Args:
        settings: As a configuration has them; they are changed.
        name: On the command line.

    Raises:
        SettingError: If there is no such setting, with those that look like it.
    """
    found = _holder(settings, name)
    if found is None:
        hint = did_you_mean(name, names_of(settings))
        raise SettingError(f"the base has no setting {name!r}{hint}")
    found[0][found[1]] = deepcopy(value)


def absent_settings(switch: Switch, base: Mapping[str, Any]) -> list[str]:
    """Returns the settings of a switch that a base hasn't.

    Args:
        base: Settings as a configuration has them.
    """
    names = [*switch.settings, *switch.without]
    return [name for name in dict.fromkeys(names) if _holder(base, name) is None]


def class_of(entry: Mapping[str, Any]) -> type | None:
    """Returns the class of a callback of a configuration; None where it can't be imported.

    Args:
        entry: A mapping with ``class_path``.
    """
    try:
        found = pkgutil.resolve_name(str(entry.get("class_path")))
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None


def replaced_callbacks(space: Space, base: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns, for each switch, the callbacks of the base in whose place it decides.

    Args:
        base: Settings as a configuration has them.
    """
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

    Of what the base has itself, the space decides: settings that a switch sets, and callbacks of the classes that it
    adds.

    Args:
        space: Which all switches are of.
        base: Settings as a configuration has them.
        cocktail: Switches that are on, with their strengths.

    Raises:
        SettingError: If a switch sets what the base hasn't.
    """
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
    """Returns what of the base is another in a configuration that a cocktail was made of, by names.

    Args:
        base: Settings as a configuration has them.
        made: By :func:`with_cocktail`.
    """
    names = [name for switch in space.switches.values() for name in (*switch.settings, *switch.without)]
    return {
        name: value_of(made, name)
        for name in dict.fromkeys([*names, _CALLBACKS])
        if value_of(made, name) != value_of(base, name)
    }
