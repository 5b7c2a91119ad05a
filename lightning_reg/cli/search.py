"""The command ``search``: finds which regularizers a network needs, and at which strengths."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_reg.cli.invocation import command_line
from lightning_reg.cli.options import CommandParser, add_places, check_places
from lightning_reg.core.metric_names import lower_is_better
from lightning_reg.search.definition import KEYS, read_search
from lightning_reg.search.report.page import headline
from lightning_reg.search.trials.storage import check_installed, masked
from lightning_reg.settings import SettingError, did_you_mean
from lightning_reg.shipped import find_config
from lightning_reg.studies.definition import Piece
from lightning_reg.studies.report import check_can_draw
from lightning_reg.text import table

__all__ = ["parsed", "search"]

_OF_BASE = ("--config", "--model", "--data", "--trainer", "--checkpoint", "--seed_everything", "-c")


def search(args: Sequence[str]) -> int:
    """Runs or resumes a search, and writes its results.

    Args:
        args: Words after ``search`` on the command line.

    Returns:
        The exit status: 0 on success, 1 if runs of the confirmation failed, 130 if interrupted.

    Raises:
        SettingError: If a setting is invalid, before the first trial; and if the disk is full.
    """
    options, pieces = parsed(args)
    check_installed()
    check_can_draw()
    options.file = find_config("search file", options.file, within="search")
    definition = read_search(options.file, quick=options.quick).with_options(
        metric=options.metric,
        prefers_less=None if options.metric is None else lower_is_better(options.metric),
        trials=options.trials,
        minutes=options.minutes,
        max_step_time=options.max_step_time,
        confirm=0 if options.no_confirm else None,
    )
    # Imported late: the checks above don't need Lightning.
    from lightning_reg.cli.search_job import CommandJob

    command = masked(command_line(["search", *args]), options.storage)
    job = CommandJob(definition, (*definition.base, *pieces), options, command)
    try:
        outcome, failures = job.do()
    except KeyboardInterrupt:
        print(f"\nInterrupted; what is finished is kept. To go on:\n  {command}", file=sys.stderr)
        return 130
    folder = job.folder.path
    print("\n" + "\n".join(headline(outcome)))
    for failure in failures:
        print(f"failed: {failure.variant}, seed {failure.seed}: {failure.message}")
    if outcome.best is not None:
        print(f"train it:  {command_line(['fit', '--config', str(folder / 'best.yaml')])}")
        print(f"in Python: {folder / 'best.py'}")
    print(f"report:    {folder / 'report.html'}")
    return 1 if failures else 0


def parsed(args: Sequence[str]) -> tuple[argparse.Namespace, list[Piece]]:
    """Returns the command's own options, and those of ``fit`` as pieces of a configuration, in their order.

    Args:
        args: Words after ``search`` on the command line.

    Raises:
        SettingError: If an option is unknown, or lacks its value.
    """
    parser = _parser()
    options, words = parser.parse_known_args(args)
    check_places(options)
    pieces: list[Piece] = []
    left = list(words)
    while left:
        name, has_value, value = left.pop(0).partition("=")
        if name.partition(".")[0].rstrip("+") not in _OF_BASE:
            hint = did_you_mean(name, [*parser.option_names, *_OF_BASE])
            raise SettingError(f"search: unrecognized argument {name}{hint}")
        if not has_value:
            if not left:
                raise SettingError(f"search: {name} must be followed by a value")
            value = left.pop(0)
        pieces.append(Path(value) if name in ("--config", "-c") else {name.lstrip("-"): value})
    return options, pieces


def _parser() -> CommandParser:
    parser = CommandParser(
        prog=command_line(["search"]),
        description="Search for the cocktail of regularizers that a network needs, and confirm it with fresh seeds. "
        "Options of fit (--model, --data, --trainer.max_epochs 20, --config ...) are added to the file's base.",
        epilog="Keys of the search's file:\n" + "\n".join(table(list(KEYS.items()), indent="  ", width=100)),
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="the search: a file, or the name of one that is shipped, such as digits")
    add("--quick", action="store_true", help="the short form, as the file has it")
    add("--trials", type=int, metavar="N", help="how many trials; as the file says, or 60")
    add("--minutes", type=float, metavar="M", help="after how long no trial is begun any more")
    add_places(parser, "trials")
    add("--storage", metavar="URL", help="a database that several drivers share, instead of a journal in the folder")
    add("--output", metavar="FOLDER", help="where everything goes; default: runs/search/NAME")
    add("--no-confirm", action="store_true", help="leave out the confirmation with fresh seeds")
    add("--metric", metavar="NAME", help="by which trials are judged, in place of the file's")
    add("--max-step-time", type=float, metavar="X", help="times the plain step's time that a step may take")
    return parser
