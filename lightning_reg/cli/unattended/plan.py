"""The runs of a study that trains networks, as command lines."""

import json
import os
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning_reg.cli.unattended.fitting import resolve
from lightning_reg.data import InMemoryData
from lightning_reg.data.images.folders import ClassFolders
from lightning_reg.data.images.sources import SOURCES
from lightning_reg.settings import SettingError, did_you_mean, near_matches
from lightning_reg.studies.definition import Definition, Form, Piece
from lightning_reg.studies.runs import Run, check_distinct, key_of

__all__ = ["command_of", "data_form", "fits"]


def command_of(pieces: Iterable[Piece]) -> tuple[str, ...]:
    """Returns the words after ``fit`` for pieces of a configuration, in their order.

    >>> command_of([Path("a.yaml"), {"model.drop_prob": 0.5, "data.augment": None}])
    ('--config', 'a.yaml', '--model.drop_prob', '0.5', '--data.augment', 'null')
    """
    words: list[str] = []
    for piece in pieces:
        if isinstance(piece, Path):
            words += ["--config", str(piece)]
        else:
            for name, value in piece.items():
                words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return tuple(words)


def data_form(name: str | None, root: str | None, forms: Mapping[str, Form]) -> tuple[Form, Piece]:
    """Returns the form of a study on another data set, and the settings that select this data set.

    Args:
        name: Name of a data set, or path of a folder of images; the study's own data if None.
        root: Folder of the data set.
        forms: The study's forms, by data set.

    Raises:
        SettingError: If there is no such data set, or the folder has no ``train`` with one folder per class.
    """
    place = {} if root is None else {"data.root": root}
    if name is None:
        return Form(), place
    if name in SOURCES:
        return forms.get(name, Form()), {"data.dataset": name, **place}
    if not os.path.isdir(name):
        hint = did_you_mean(name, SOURCES)
        raise SettingError(f"data must be {', '.join(SOURCES)}, or a folder of images, but is {name!r}{hint}")
    if root is not None:
        raise SettingError(f"root must be left out where data is a folder, but is {root!r}")
    try:
        ClassFolders(Path(name))
    except SettingError as error:
        raise SettingError(f"data: {error}") from error
    return forms.get("image_folder", Form()), {"data.dataset": "image_folder", "data.root": name}


def fits(definition: Definition) -> list[Run]:
    """Returns the runs of a study that trains networks, ordered by seed so that variants can be compared early.

    Raises:
        SettingError: If a variant can't be parsed, two variants are the same, or a variant doesn't provide what is
            collected.
    """
    base = _resolved("base", definition.base)
    known = set(_names(base))
    contents = {
        name: _resolved(f"variants.{name}", (*definition.base, *pieces), known)
        for name, pieces in definition.variants.items()
    }
    check_distinct(contents, base)
    for name, content in contents.items():
        _check_collected(f"variants.{name}", content, definition.study.collect)
    seeds = definition.study.seeds
    return [_run(definition, variant, seed, content) for seed in seeds for variant, content in contents.items()]


def _run(definition: Definition, variant: str, seed: int, content: dict[str, Any]) -> Run:
    seeds: dict[str, Any] = {"seed_everything": seed}
    seeded = deepcopy(content)
    seeded["seed_everything"] = seed
    arguments = (seeded.get("data") or {}).get("init_args") or {}
    if "seed" in arguments:  # our data modules seed splits and order with it; others use the global seed
        seeds["data.seed"] = arguments["seed"] = seed
    if definition.repeat:
        if "repeat" not in arguments:
            raise SettingError(
                "repeat must be false where the data module has no repeat, which makes partitions of data"
            )
        seeds["data.repeat"] = arguments["repeat"] = seed
    collect = definition.study.collect
    return Run(
        variant=variant,
        seed=seed,
        key=key_of({"fit": seeded, "collect": sorted(collect)}),
        command=command_of((*definition.base, *definition.variants[variant], seeds)),
        collect=tuple(collect),
    )


def _resolved(name: str, pieces: Sequence[Piece], known: Iterable[str] = ()) -> dict[str, Any]:
    try:
        return resolve(command_of(pieces))
    except SettingError as error:
        raise SettingError(f"{name}: {_with_hint(str(error), pieces, set(known))}") from error


def _with_hint(error: str, pieces: Sequence[Piece], known: set[str]) -> str:
    """Returns a message about an unknown setting with the setting of the base that resembles it, by its full name."""
    written = [key.removesuffix("+") for piece in pieces if not isinstance(piece, Path) for key in piece]
    for key in (key for key in written if key not in known):
        near = near_matches(key.replace(".init_args.", "."), known, most=1)
        if near and f"{key.rpartition('.')[2]} is no setting" in error:
            return f"{error.partition('; did you mean')[0]}; did you mean {near[0]}?"
    return error


def _names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the command-line names of all settings."""
    for key, value in settings.items():
        name = prefix.rstrip(".") if key == "init_args" else f"{prefix}{key}"
        if key != "init_args":
            yield name
        if isinstance(value, Mapping):
            yield from _names(value, f"{name}.")


def _check_collected(name: str, content: Mapping[str, Any], collect: Sequence[str]) -> None:
    if "predictions" not in collect:
        return
    path = str((content.get("data") or {}).get("class_path"))
    kind = pkgutil.resolve_name(path)
    if not (isinstance(kind, type) and issubclass(kind, InMemoryData)):
        raise SettingError(f"{name}: collect must leave out predictions, because {path} doesn't give their targets")
