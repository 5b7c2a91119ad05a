"""A parser whose help and errors can be read."""

import re
from argparse import Action
from numbers import Number
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

__all__ = ["BriefParser", "brief"]


def _is_number(value: Any, _: type) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def _as_number(value: Any) -> Any:
    if not _is_number(value, Number):
        raise ValueError(f"{value!r} is no number")
    return value


# torchvision annotates arguments with it, and jsonargparse couldn't write them into the run's configuration.
register_type(Number, serializer=_as_number, deserializer=_as_number, type_check=_is_number)

_PROBLEM = re.compile(r"^( *)- Problem with given class_path '([\w.]+)':\n((?:\1 {3,}.*(?:\n|$))+)", re.MULTILINE)


def brief(message: str) -> str:
    r"""Returns what a parser says of the class that was asked for; any other message as it is.

    Args:
        message: That tells every type a value could have had, and why it has none of them.

    >>> brief("Any of these\n - Problem with given class_path 'a.L2Penalty':\n     Parser key: Expected 1")
    'L2Penalty: Parser key: Expected 1'
    """
    told = [(path, lines) for _, path, lines in _PROBLEM.findall(message) if path != "lightning.Callback"]
    if not told:
        return message
    path, lines = told[0]
    return f"{path.rpartition('.')[2]}: {' '.join(line.strip() for line in lines.splitlines())}"


class BriefHelp(DefaultHelpFormatter):
    """Help that names a few subclasses of a type, instead of all two hundred modules of torch."""

    def _expand_help(self, action: Action) -> str:
        return re.sub(r"(known subclasses: (?:[^,)]+, ){4})[^)]*", r"\1...", super()._expand_help(action))


class BriefParser(LightningArgumentParser):
    """LightningCLI's parser with help in brief, and a usage line instead of a wall before every error.

    Args:
        settings: Of LightningArgumentParser.
    """

    @override
    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=BriefHelp, **settings)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says what is wrong with the class that was asked for, without all the types that it could have been."""
        super().error(brief(message), ex)

    @override
    def format_usage(self) -> str:
        return f"usage: {self.prog} --config FILE [--config TECHNIQUE ...] [--OPTION VALUE ...]\n"
