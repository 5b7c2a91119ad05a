"""The command ``configs``: lists, shows and copies the configurations shipped with the package."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_reg.cli.invocation import command_line
from lightning_reg.cli.options import CommandParser
from lightning_reg.plain_yaml import parsed_yaml
from lightning_reg.settings import SettingError
from lightning_reg.shipped import near_configs, shipped_configs
from lightning_reg.text import table

__all__ = ["configs", "described"]


def configs(args: Sequence[str]) -> int:
    """Lists, shows or copies shipped configurations.

    Args:
        args: Words after ``configs`` on the command line.

    Returns:
        The exit status.

    Raises:
        SettingError: If there is no configuration of a given name, or a copy would replace a different file.
    """
    options = _parser().parse_args(args)
    chosen = _chosen(options.names)
    if options.to is not None:
        copied = _copy(chosen, Path(options.to))
        rest = "" if copied == len(chosen) else "; the others are there already"
        print(f"{copied} of {len(chosen)} configurations copied into {options.to}{rest}")
    elif options.names:
        print("\n".join(file.read_text(encoding="utf-8") for file in chosen.values()), end="")
    else:
        print("\n".join(table(list(described(chosen).items()))))
        print(
            f"\nTrain with one: {command_line()} fit --config digits_mlp --config techniques/mixup"
            f"\nRead one:       {command_line()} configs digits_mlp"
            f"\nCopy some:      {command_line()} configs digits_mlp techniques/mixup --to FOLDER"
        )
    return 0


def described(files: Mapping[str, Path]) -> dict[str, str]:
    """Returns the description of each configuration: a study's title, or the second comment line of other files."""
    found = {}
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")
        comments = [line[1:].strip() for line in text.splitlines()[:2] if line.startswith("#")]
        if "\ntitle:" in text:
            found[name] = str(parsed_yaml(name, text)["title"])
        else:
            found[name] = comments[1] if len(comments) > 1 else ""
    return found


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=command_line(["configs"]),
        description="List, show or copy the configurations that come with the package.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="configurations, such as digits_mlp; default: all")
    parser.add_argument("--to", metavar="FOLDER", help="copy them there instead of showing them")
    return parser


def _chosen(names: Sequence[str]) -> dict[str, Path]:
    shipped = shipped_configs()
    for name in names:
        if name not in shipped:
            raise SettingError(f"configs must be names of shipped configurations, but has {name!r}{near_configs(name)}")
    return {name: shipped[name] for name in names} if names else shipped


def _copy(files: Mapping[str, Path], folder: Path) -> int:
    """Copies files into a folder, each under its name, and returns the number of files that weren't there before."""
    places = {name: folder / f"{name}.yaml" for name in files}
    for name, place in places.items():
        if os.path.lexists(place) and (not os.path.isfile(place) or place.read_bytes() != files[name].read_bytes()):
            raise SettingError(f"to must be a folder in which nothing would be replaced, but {str(place)!r} differs")
    missing = {name: place for name, place in places.items() if not os.path.lexists(place)}
    try:
        for name, place in missing.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files[name].read_bytes())
    except OSError as error:
        raise SettingError(f"to must be a folder that can be written to, but {str(folder)!r}: {error}") from error
    return len(missing)
