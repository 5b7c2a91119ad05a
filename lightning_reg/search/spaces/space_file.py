"""Reader of search spaces in YAML."""

import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_reg import callbacks
from lightning_reg.core.technique import Technique
from lightning_reg.files import read_yaml
from lightning_reg.search.spaces.ranges import Options, as_range, declared, is_range
from lightning_reg.search.spaces.space import Space
from lightning_reg.search.spaces.switch import Switch
from lightning_reg.settings import SettingError, check_text, did_you_mean

__all__ = ["SHIPPED", "read_space", "space_of"]

_FOLDER = Path(__file__).parent
SHIPPED = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
"""Names of the spaces shipped with the package."""

_SPACE_KEYS = ("title", "switches", "presets")
_SWITCH_KEYS = ("title", "set", "without", "callback", "arguments", "callbacks", "group", "optional")


def read_space(given: str | Mapping[str, Any], beside: Path = Path()) -> Space:
    """Reads a search space.

    Args:
        given: Name of a shipped space, path of a file, or the content of such a file.
        beside: Folder in which the file is also looked up.

    Raises:
        SettingError: If the space is invalid.

    >>> list(read_space({"switches": {"l1": {"callback": "L1Penalty"}}}).switches["l1"].usual())
    ['weight']
    """
    if isinstance(given, Mapping):
        return space_of("here", given)
    check_text("space", given, or_path=True)
    if given in SHIPPED:
        return space_of(given, read_yaml("space", _FOLDER / f"{given}.yaml"))
    found = [path for path in (Path(given), beside / given) if os.path.isfile(path)]
    if not found:
        hint = did_you_mean(given, SHIPPED)
        raise SettingError(f"space must be one of {', '.join(SHIPPED)}, or a file, but is {given!r}{hint}")
    try:
        return space_of(found[0].stem, read_yaml("space", found[0]))
    except SettingError as error:
        raise SettingError(f"space {str(found[0])!r}: {error}") from error


def space_of(name: str, content: Any) -> Space:
    """Returns the space defined by a file's content.

    Raises:
        SettingError: If the content is invalid.
    """
    content = _checked("the space", content, _SPACE_KEYS)
    given = _by_name("switches", content.get("switches"), "switches")
    space = Space(
        name=name,
        title=" ".join(_text("title", content.get("title", name)).split()),
        switches={switch: _switch(switch, keys) for switch, keys in given.items()},
    )
    presets = {
        preset: _preset(space, f"presets.{preset}", found)
        for preset, found in _by_name("presets", content.get("presets"), "presets").items()
    }
    return Space(space.name, space.title, space.switches, presets)


def _preset(space: Space, where: str, given: Any) -> dict[str, dict[str, Any]]:
    found = _by_name(where, given, "switches")
    if not found:
        raise SettingError(f"{where} must have at least one switch, but is empty")
    return space.check(
        {name: _by_name(f"{where}.{name}", values, "strengths") for name, values in found.items()}, where
    )


def _switch(name: str, given: Any) -> Switch:
    where = f"switches.{name}"
    keys = _checked(where, given, _SWITCH_KEYS)
    if not name or "." in name or " " in name:
        raise SettingError(f"switches must have names without points and spaces, but one is {name!r}")
    added = keys.get("callbacks", [])
    if not isinstance(added, list):
        raise SettingError(f"{where}.callbacks must be a list, but is {added!r}")
    if "callback" in keys:
        added = [{"class_path": keys["callback"], "init_args": keys.get("arguments") or {}}, *added]
    elif "arguments" in keys:
        raise SettingError(f"{where}.arguments must be left out without a callback")
    optional = keys.get("optional", False)
    if not isinstance(optional, bool):
        raise SettingError(f"{where}.optional must be true or false, but is {optional!r}")
    switch = Switch(
        name=name,
        title=_text(f"{where}.title", keys.get("title", name.replace("_", " "))),
        settings=_template(f"{where}.set", _by_name(f"{where}.set", keys.get("set"))),
        without=_by_name(f"{where}.without", keys.get("without")),
        callbacks=[_callback(f"{where}.callbacks", callback) for callback in added],
        group=_text(f"{where}.group", keys["group"]) if "group" in keys else None,
        is_optional=optional,
    )
    if not switch.settings and not switch.callbacks:
        raise SettingError(f"{where} must set something, or add a callback")
    repeated = next((entry for entry in switch.callbacks if list(switch.callbacks).count(entry) > 1), None)
    if repeated is not None:
        raise SettingError(f"{where} must add a callback once, but has two equal ones, {repeated['class_path']}")
    return switch


def _callback(where: str, given: Any) -> dict[str, Any]:
    """Returns a callback with ranges: those that it declares, unless the file overrides them."""
    if isinstance(given, str):
        given = {"class_path": given}
    entry = _checked(where, given, ("class_path", "init_args"))
    kind = _class_of(where, str(entry.get("class_path")))
    arguments = _template(where, _by_name(where, entry.get("init_args")))
    if issubclass(kind, Technique):
        usual = {found.setting: declared(found) for found in kind.usual_ranges}
        arguments = {**usual, **arguments}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    module = callbacks.__name__ if kind.__name__ in callbacks.__all__ else kind.__module__
    return {"class_path": f"{module}.{kind.__name__}", "init_args": arguments}


def _class_of(where: str, path: str) -> type:
    if "." not in path:
        if path not in callbacks.__all__:
            hint = did_you_mean(path, callbacks.__all__)
            raise SettingError(f"{where} must name a callback or its import path, but is {path!r}{hint}")
        path = f"{callbacks.__name__}.{path}"
    try:
        kind = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"{where} must name a callback or its import path, but is {path!r}: {error}") from error
    if not isinstance(kind, type):
        raise SettingError(f"{where} must name a callback, but {path!r} is a {type(kind).__name__}")
    return kind


def _template(where: str, given: Any) -> Any:
    """Returns values in which mappings that define ranges are replaced by ranges."""
    if is_range(given):
        made = as_range(where, given)
        if isinstance(made, Options) and isinstance(given["choice"], dict):
            values = {name: _template(f"{where}.{name}", value) for name, value in given["choice"].items()}
            return Options(values, made.usual)
        return made
    if isinstance(given, dict):
        return {key: _template(f"{where}.{key}", value) for key, value in given.items()}
    if isinstance(given, list):
        return [_template(where, value) for value in given]
    return given


def _by_name(where: str, given: Any, what: str = "settings") -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise SettingError(f"{where} must be {what} by name, but is {given!r}")
    return given


def _text(where: str, given: Any) -> str:
    if not isinstance(given, str):
        raise SettingError(f"{where} must be text, but is {given!r}")
    return given


def _checked(where: str, given: Any, known: tuple[str, ...]) -> dict[str, Any]:
    found = _by_name(where, given)
    for key in found:
        if key not in known:
            hint = did_you_mean(key, known)
            raise SettingError(f"{where} has {key!r}, which is none of {', '.join(known)}{hint}")
    return {key: value for key, value in found.items() if value is not None}  # null stands for what is left out
