"""Parser of the commands that aren't LightningCLI's, and the options that ``study`` and ``search`` share."""

import argparse
import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any, NoReturn

from typing_extensions import override

import lightning_reg
from lightning_reg.settings import SettingError, check_count, check_range, did_you_mean
from lightning_reg.studies.cluster import RayExecutor
from lightning_reg.studies.executor import Executor, LocalExecutor
from lightning_reg.studies.machine import processor

__all__ = ["CommandParser", "add_places", "check_places", "executor_of", "versions"]


class CommandParser(argparse.ArgumentParser):
    """A parser that reports errors in one sentence, with a suggestion for misspelled options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    @override
    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split()
        hint = did_you_mean(unknown[0].partition("=")[0], self.option_names) if unknown else ""
        command = self.prog.rpartition(" ")[2]
        raise SettingError(f"{command}: {message}{hint or f'; see {self.prog} --help'}")

    @property
    def option_names(self) -> list[str]:
        """Names of all options, with their dashes."""
        return [option for action in self._actions for option in action.option_strings]


def add_places(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the options that determine where runs are executed.

    Args:
        what: Noun in the plural for what is executed, for the help text.
    """
    add = parser.add_argument
    add(
        "--jobs", type=int, default=1, metavar="N", help=f"{what} at once, each with its share of the cores; default: 1"
    )
    add("--cluster", metavar="ADDRESS", help=f"do the {what} on a Ray cluster: auto, HOST:PORT, or local")
    add("--gpus-per-run", type=float, metavar="N", help="how many GPUs of the cluster each run has; default: 0")


def check_places(options: argparse.Namespace) -> None:
    """Checks the options that determine where runs are executed.

    Args:
        options: Parsed options, including those of :func:`add_places`.

    Raises:
        SettingError: If an option is out of range, or contradicts another.
    """
    check_count("jobs", options.jobs)
    if options.cluster is None and options.gpus_per_run is not None:
        raise SettingError("gpus_per_run must be left out without --cluster")
    if options.cluster is not None and options.jobs != 1:
        raise SettingError("jobs must be left out with --cluster, which does as many runs at once as it has cores")
    check_range("gpus_per_run", options.gpus_per_run or 0, low=0)


def executor_of(options: argparse.Namespace) -> Executor:
    """Returns the executor of runs.

    Args:
        options: Options checked by :func:`check_places`.
    """
    if options.cluster is None:
        return LocalExecutor(options.jobs)
    return RayExecutor(options.cluster, gpus_per_run=options.gpus_per_run or 0)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of lightning_reg, of some packages and of Python, and the machine's processor, by name.

    Args:
        packages: Names of installed distributions.
    """
    found = {"lightning_reg": lightning_reg.__version__}
    found |= {package: importlib.metadata.version(package) for package in packages}
    return {**found, "Python": platform.python_version(), "processor": processor()}
