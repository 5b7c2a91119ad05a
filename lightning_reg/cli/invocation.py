"""How the command line was called, for commands that are shown to be called again."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import PurePath

__all__ = ["command_line", "invocation"]


def invocation() -> list[str]:
    """Returns the words before the subcommand: a script's, the module's, or those of the installed command."""
    script = sys.argv[0] if sys.argv else ""
    path = PurePath(script)
    if path.name == "__main__.py" and path.parent.name == "lightning_reg":
        return ["python", "-m", "lightning_reg"]
    if path.suffix == ".py" and path.name != "__main__.py":
        return ["python", script]
    return ["lightning-reg"]  # also where another program has called us


def command_line(words: Iterable[str] = ()) -> str:
    """Returns a command as a shell takes it.

    Args:
        words: What follows the words by which the command line was called.
    """
    return shlex.join([*invocation(), *words])
