"""Entry point: parses, runs, and reports expected errors in one sentence."""

import importlib
import sys
import warnings
from collections.abc import Sequence

from lightning_reg.settings import SettingError, check_choice, first_in_chain

__all__ = ["main"]

_RUNS = ("fit", "validate", "test", "predict")
_COMMANDS = ("configs", "search", "soup", "study")  # besides LightningCLI's: a function in a module of its name


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: Words after ``lightning-reg``; if None, ``sys.argv[1:]``, and torch's process group, if the run has made
            one, is closed at its end.

    Returns:
        The exit status: 0 on success, 1 if runs of a study or of a search's confirmation failed, 2 for an invalid
        setting, 130 if interrupted.
    """
    words = sys.argv[1:] if args is None else list(args)
    if not words:
        from lightning_reg.cli.overview import overview

        print(overview())
        return 0
    # Our loader fetches a whole batch in one indexing operation; worker processes would only slow it down.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # A resumed run writes into its previous folder.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Lightning still uses torch's old pytree name on newer torch.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
    try:
        if not words[0].startswith("-"):
            check_choice("command", words[0], [*_RUNS, *_COMMANDS])
        # Imported late, so that the overview appears at once and Ctrl-C never prints a traceback.
        if words[0] in _COMMANDS:
            module = importlib.import_module(f"lightning_reg.cli.{words[0]}")
            status: int = getattr(module, words[0])(words[1:])
            return status
        from lightning_reg.cli.command import RegularizationCLI

        RegularizationCLI(args)
        if args is None:
            _close_process_group()
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


def _close_process_group() -> None:
    """Joins gloo's threads: if the interpreter ends while they free tensors, torch aborts."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
