"""How the command line was invoked, for printing commands the user can run again."""

import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePath

__all__ = ["changed_command", "command_line", "invocation"]


def invocation() -> list[str]:
    """Returns the words before the subcommand: of a script, of ``python -m``, or of the installed command."""
    script = sys.argv[0] if sys.argv else ""
    path = PurePath(script)
    if path.name == "__main__.py" and path.parent.name == "lightning_reg":
        return ["python", "-m", "lightning_reg"]
    if path.suffix == ".py" and path.name != "__main__.py":
        return ["python", script]
    return ["lightning-reg"]  # also when called from another program


def command_line(words: Iterable[str] = ()) -> str:
    """Returns a command line, quoted for a shell.

    Args:
        words: Words after :func:`invocation`, starting with the subcommand.
    """
    return shlex.join([*invocation(), *words])


def changed_command(words: Iterable[str], options: Sequence[str], *, without: Collection[str] = ()) -> str:
    """Returns a command with additional options, which replace those of the same name; configurations accumulate.

    Args:
        words: Words after :func:`invocation`, starting with the subcommand.
        without: Names of options to remove.

    >>> changed_command(["fit", "--ckpt_path", "old runs/last.ckpt", "--config=a.yaml"], ["--ckpt_path", "new runs/a"])
    "lightning-reg fit --config=a.yaml --ckpt_path 'new runs/a'"
    """
    replaced = {*without, *(word for word in options if word.startswith("--") and word != "--config")}
    kept = []
    left = iter(words)
    for word in left:
        if word in replaced:
            next(left, None)  # its value
        elif word.partition("=")[0] not in replaced:
            kept.append(word)
    return command_line([*kept, *options])
