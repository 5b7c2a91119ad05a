"""The configurations shipped with the package, by name."""

import os
from pathlib import Path

from lightning_reg.settings import SettingError, did_you_mean

__all__ = ["configs_folder", "find_config", "near_configs", "shipped_configs"]

_SUFFIX = ".yaml"


def configs_folder() -> Path:
    """Returns the folder of the shipped configurations: inside an installed package, beside the package in a checkout.

    >>> (configs_folder() / "digits_mlp.yaml").is_file()
    True
    """
    package = Path(__file__).parent
    inside = package / "configs"  # where the wheel puts them
    return inside if inside.is_dir() else package.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Returns the shipped configurations by name: their paths in the folder, without the suffix.

    >>> [name for name in shipped_configs() if name in ("digits_mlp", "studies/dropout", "techniques/mixup")]
    ['digits_mlp', 'studies/dropout', 'techniques/mixup']
    """
    folder = configs_folder()
    files = sorted(folder.rglob(f"*{_SUFFIX}"), key=lambda file: (len(file.relative_to(folder).parts), file))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_config(argument: str, name: str, *, within: str = "") -> Path:
    """Returns the file at a path, or of the shipped configuration of that name; an existing file takes precedence.

    Args:
        argument: Name of the argument, for error messages.
        name: A path, or the name of a shipped configuration, with or without ``.yaml``.
        within: Folder of shipped configurations that the name may leave out.

    Raises:
        SettingError: If there is neither such a file nor such a configuration.

    >>> find_config("study", "dropout", within="studies").name
    'dropout.yaml'
    >>> find_config("config", "mixup")
    Traceback (most recent call last):
    lightning_reg.settings.SettingError: config must be a file that exists, or the name of a shipped configuration, but
    is 'mixup'; did you mean 'techniques/mixup'?
    """
    # Not with pathlib, which raises for a string that is too long for a name. The reader refuses a device or a pipe.
    if os.path.exists(name) and not os.path.isdir(name):
        return Path(name)
    shipped = shipped_configs()
    short = name.removesuffix(_SUFFIX)
    for candidate in (short, f"{within}/{short}") if within else (short,):
        if candidate in shipped:
            return shipped[candidate]
    raise SettingError(
        f"{argument} must be a file that exists, or the name of a shipped configuration, but is {name!r}"
        f"{near_configs(short)}"
    )


def near_configs(name: str) -> str:
    """Returns the end of a message that suggests the shipped configurations that ``name`` may mean.

    >>> near_configs("mixup")
    "; did you mean 'techniques/mixup'?"
    """
    shipped = shipped_configs()
    same = [other for other in shipped if other.rpartition("/")[2] == name.rpartition("/")[2]]
    return f"; did you mean {' or '.join(map(repr, same))}?" if same else did_you_mean(name, shipped)
