"""The command ``soup``: the mean of the weights of several checkpoints of one model."""

import argparse
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_reg.callbacks import CheckpointSoup
from lightning_reg.callbacks.weights.checkpoint_soup import Soup
from lightning_reg.cli.command import RegularizationCLI
from lightning_reg.cli.invocation import command_line
from lightning_reg.cli.options import CommandParser
from lightning_reg.settings import SettingError
from lightning_reg.text import table

__all__ = ["soup"]


def soup(args: Sequence[str]) -> int:
    """Averages checkpoints, and saves the average as a checkpoint.

    Args:
        args: Words after ``soup`` on the command line.

    Returns:
        The exit status.

    Raises:
        SettingError: If a setting is invalid, before anything is written.
    """
    named = list(takewhile(lambda word: not word.startswith("-"), args))
    options, words = _parser().parse_known_args(args[len(named) :])
    if len(named) < 2:
        raise SettingError(
            f"soup: at least two checkpoints must be named, before any option, but there are {len(named)}"
        )
    output = Path(options.output)
    if output.suffix != ".ckpt" or os.path.lexists(output) or not os.path.isdir(output.parent):
        raise SettingError(
            f"output must be a new file that ends in .ckpt, in a folder that exists, but is {options.output!r}"
        )
    _check_writable(output)
    cooked = _Cook(named, options, words).soup
    cooked.save(output)
    rows = [["checkpoint", *(["score"] if cooked.scores else []), "in the soup"]]
    for path in map(Path, dict.fromkeys(named)):
        score = [f"{cooked.scores[path]:.4f}"] if cooked.scores else []
        rows.append([str(path), *score, "yes" if path in cooked.ingredients else "no"])
    if cooked.score is not None:
        rows.append(["soup", f"{cooked.score:.4f}", ""])
    print("\n".join(table(rows)))
    print(f"\nsaved: {output}\nTo measure it:\n  {command_line(['test', *words, '--ckpt_path', str(output)])}")
    return 0


def _check_writable(output: Path) -> None:
    """Raises if a file can't be made, before rather than after all validations."""
    try:
        output.touch(exist_ok=False)
        output.unlink()
    except OSError as error:
        raise SettingError(
            f"output must be a file that can be written, but is {str(output)!r}: {error.strerror}"
        ) from error


def _parser() -> argparse.ArgumentParser:
    made = CommandParser(
        prog=command_line(["soup"]),
        usage="%(prog)s CHECKPOINT CHECKPOINT ... [--uniform] [--buffers WHICH] [--output FILE] --config FILE",
        description="Average the weights of several checkpoints of one model, those that help or all of them.",
        epilog="Other options are those that the model was trained with: --config FILE, --model.hidden_sizes ...\n"
        "What is compared is --checkpoint.monitor, on a validation part that all trainings held out (data.seed).",
    )
    add = made.add_argument
    add("--uniform", action="store_true", help="take all of them, rather than those that make validation no worse")
    add(
        "--buffers",
        choices=("recompute", "average"),
        default="recompute",
        help="BatchNorm's statistics: recompute them of training data (default), or average them",
    )
    add("--output", metavar="FILE", default="soup.ckpt", help="where the soup is saved; default: soup.ckpt")
    return made


class _Cook(RegularizationCLI):
    """Sets up ``validate``, and makes a soup instead.

    Args:
        checkpoints: Paths of the ingredients.
        options: Options of the command's own parser.
        words: Words after ``validate`` on the command line.
    """

    def __init__(self, checkpoints: Sequence[str], options: argparse.Namespace, words: Sequence[str]) -> None:
        self.checkpoints = checkpoints
        self.options = options
        first = checkpoints[0]  # the data module takes its constants, and it is checked against the model
        super().__init__(["validate", *words, "--ckpt_path", first, "--trainer.logger", "false"])

    @override
    def validate(self, **settings: Any) -> None:
        monitored = self._get(self.config_init, "checkpoint")
        maker = CheckpointSoup(
            greedy=not self.options.uniform,
            monitor=str(monitored.monitor),
            mode=monitored.mode,
            buffers=self.options.buffers,
        )
        with self._answering(settings):
            self.soup: Soup = maker.cook(self.trainer, self.model, self.checkpoints, datamodule=self.datamodule)
