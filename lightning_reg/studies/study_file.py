"""YAML as a study file is written: numbers as anybody writes them, and no name twice."""

import re
from pathlib import Path
from typing import Any

import yaml

from lightning_reg.settings import SettingError

__all__ = ["load_yaml"]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads 1e-4 as a number, and refuses a mapping with a key twice: of two variants one would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Returns the mapping.

        Args:
            node: Of the file.
            deep: Whether what lies in it is made at once.

        Raises:
            SettingError: If a key is there twice.
        """
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if isinstance(key, (list, dict)):
                raise SettingError(f"line {node.start_mark.line + 1}: a name must be text or a number, but is {key}")
            if key in keys[:index]:
                raise SettingError(f"line {node.value[index][0].start_mark.line + 1}: {key!r} is there twice")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


# YAML 1.1, which PyYAML reads, wants a point in a number with an exponent; command lines don't.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_yaml(path: Path) -> Any:
    """Returns what a file holds.

    Args:
        path: Of the file.

    Raises:
        SettingError: If there is none, or it isn't YAML.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, Loader=_Loader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"study file {str(path)!r} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise SettingError(f"study file {str(path)!r} is no YAML: {error}") from error
    except SettingError as error:
        raise SettingError(f"study file {str(path)!r}, {error}") from error
