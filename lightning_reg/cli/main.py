"""Entry point: parses, runs, and turns foreseeable errors into one sentence."""

import importlib
import sys
import warnings
from collections.abc import Sequence

from lightning_reg.settings import SettingError, first_in_chain

__all__ = ["main"]

_COMMANDS = ("configs", "search", "soup", "study")  # beside LightningCLI's own: a function in a module of its name


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: What would follow ``lightning-reg``; the process's own arguments where None.

    Returns:
        The exit status: 0 if all went well, 1 if runs of a study failed, 2 for a setting that can't be used.
    """
    words = sys.argv[1:] if args is None else list(args)
    if not words:
        from lightning_reg.cli.overview import overview

        print(overview())
        return 0
    # Our loader fetches a whole batch by one index operation; worker processes would only slow it down.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # A resumed run writes where it wrote before.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Lightning still calls torch's old pytree name on newer torch.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
    try:
        # Imported late, so that the overview appears at once and Ctrl-C is quiet from the start.
        if words[0] in _COMMANDS:
            module = importlib.import_module(f"lightning_reg.cli.commands.{words[0]}")
            status: int = getattr(module, words[0])(words[1:])
            return status
        from lightning_reg.cli.command import RegularizationCLI

        RegularizationCLI(args)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        from lightning.pytorch.utilities.exceptions import MisconfigurationException

        foreseen = first_in_chain(error, (SettingError, MisconfigurationException))
        if foreseen is None:
            raise
        print(f"error: {' '.join(str(foreseen).split())}", file=sys.stderr)
        return 2
    return 0
