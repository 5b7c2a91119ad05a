"""An argument parser with readable help and error messages."""

import re
import sys
from argparse import Action
from enum import Enum
from numbers import Number
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, DefaultHelpFormatter, get_loader, set_loader  # type: ignore[attr-defined]
from jsonargparse import Path as ConfigPath  # type: ignore[attr-defined]
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_reg.cli.answers.explanation import explained, shown
from lightning_reg.cli.invocation import command_line
from lightning_reg.files import check_yaml, read_text
from lightning_reg.plain_yaml import parsed_yaml
from lightning_reg.settings import SettingError, first_in_chain
from lightning_reg.shipped import find_config

__all__ = ["BriefParser"]


def _is_number(value: Any, _: type) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def _as_number(value: Any) -> Any:
    if not _is_number(value, Number):
        raise ValueError(f"{value!r} is no number")
    return value


# torchvision annotates arguments with Number, which jsonargparse couldn't write into the run's configuration.
register_type(Number, serializer=_as_number, deserializer=_as_number, type_check=_is_number)


def _read_text(path: Any) -> str:
    """Reads a configuration with our checks for untrusted files; URLs and standard input are left to the parser."""
    if path.is_url or path.is_fsspec or path.relative == "-":
        return str(_read_anything(path))
    text = read_text("config", path.absolute)
    name = f"config {path.relative!r}"
    content = parsed_yaml(name, text)
    for command, key in (("study", "variants"), ("search", "base")):
        if isinstance(content, dict) and key in content:
            how = command_line([command, path.relative])
            raise SettingError(f"{name} must hold settings of a run, but has {key}: it is for {command}, as in {how}")
    for section in (content, *(content.values() if isinstance(content, dict) else ())):
        odd = [key for key in section if not isinstance(key, str)] if isinstance(section, dict) else []
        if odd:
            raise SettingError(f"{name} must have names as keys, but has {shown(odd[0])}")
    return text


# The one place where the parser reads configurations, both those on the command line and those nested in others.
_READER = "read_text" if hasattr(ConfigPath, "read_text") else "get_content"  # its name before 4.42
_read_anything = getattr(ConfigPath, _READER)
setattr(ConfigPath, _READER, _read_text)

# Some defaults are members of an enumeration, such as that of Timer's interval, which YAML couldn't write.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))

_load_anything = get_loader("yaml")


def _load_yaml(text: str) -> Any:
    try:
        check_yaml("a value", text)
    except SettingError as error:
        if not isinstance(error.__cause__, yaml.YAMLError):
            raise
        # The parser then treats the value as text.
    try:
        return _load_anything(text)
    except KeyError as error:
        raise SettingError(f"a value isn't plain YAML: {error} is no value of its tag") from error


set_loader("yaml", _load_yaml, (yaml.YAMLError,))


class NamedConfigFile(ActionConfigFile):
    """Accepts a configuration by its path, by the name of a shipped one, or as text."""

    @override
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        # URLs, YAML text and standard input aren't names.
        is_name = isinstance(values, str) and re.fullmatch(r"[\w./-]+", values) and values != "-"
        path = str(find_config("config", values)) if is_name else values
        try:
            super().__call__(parser, cfg, path, option_string)  # type: ignore[no-untyped-call]
        except ImportError as error:  # a package for such URLs
            raise SettingError(f"config {values!r} can't be read: {error}") from error


class BriefHelp(DefaultHelpFormatter):
    """Help formatter that lists only a few subclasses of a type, and none of torch's two hundred modules."""

    def _expand_help(self, action: Action) -> str:
        text = re.sub(r",\s+known subclasses: torch\.nn\.Module,[^)]*", "", super()._expand_help(action))
        return re.sub(r"(known subclasses: (?:[^,)]+, ){2})[^)]*", r"\1...", text)


class BriefParser(LightningArgumentParser):
    """LightningCLI's parser with short help texts and one-sentence error messages."""

    @override
    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=BriefHelp, **{"prog": command_line(), **settings})

    @override
    def add_argument(self, *args: Any, **settings: Any) -> Any:
        if settings.get("action") is ActionConfigFile:
            settings["action"] = NamedConfigFile
            settings["help"] = "Path or name of a configuration; of several, later ones come on top."
        return super().add_argument(*args, **settings)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Reports an error in one sentence."""
        if not self.exit_on_error:  # the parser of one class's arguments, whose error is handled by another parser
            super().error(message, ex)
        self.refuse(self.explained(message, ex))

    def explained(self, message: str, ex: Exception | None = None) -> str:
        """Returns an error message in one sentence.

        Args:
            ex: Exception that caused the error.
        """
        foreseen = first_in_chain(ex, (SettingError,))
        return str(foreseen) if foreseen else explained(message, self.setting_names())

    def refuse(self, sentence: str) -> NoReturn:
        """Prints an error message and exits with status 2."""
        print(f"error: {sentence}", file=sys.stderr)
        self.exit(2)

    def setting_names(self) -> list[str]:
        """Returns the names of all options of this command and of its subcommands."""
        names = []
        for action in self._actions:
            if isinstance(action.choices, dict):
                names += [name for parser in action.choices.values() for name in parser.setting_names()]
            names += [option.lstrip("-") for option in action.option_strings]
        return list(dict.fromkeys(names))

    @override
    def format_usage(self) -> str:
        return f"usage: {self.prog} --config FILE [--config TECHNIQUE ...] [--OPTION VALUE ...]\n"
