"""A parser whose help and errors can be read."""

import re
from argparse import Action
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

__all__ = ["BriefParser"]


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
    def format_usage(self) -> str:
        return f"usage: {self.prog} --config FILE [--config TECHNIQUE ...] [--OPTION VALUE ...]\n"
