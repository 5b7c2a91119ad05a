"""The command ``study``: variants of one run, over seeds, and a report of what each is worth."""

import argparse
import importlib.metadata
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from lightning_reg.cli.invocation import command_line
from lightning_reg.files import read_yaml
from lightning_reg.settings import SettingError, check_choice, check_count, check_range, did_you_mean
from lightning_reg.shipped import find_config
from lightning_reg.studies.definition import Definition, Form, read_study
from lightning_reg.studies.execution import Perform, execute
from lightning_reg.studies.executor import Executor, LocalExecutor, RayExecutor
from lightning_reg.studies.machine import processor
from lightning_reg.studies.outcome import Failure, Outcome
from lightning_reg.studies.report import check_can_draw, headline, number, write_report
from lightning_reg.studies.runs import Run, computations, compute
from lightning_reg.studies.statistics import summaries
from lightning_reg.studies.store import Store, full_disk, is_disk_full
from lightning_reg.studies.study_file import dumped, keys_help
from lightning_reg.text import duration, table

__all__ = ["parser", "study"]

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "scikit-learn")


def study(args: Sequence[str]) -> int:
    """Runs a study, or what is left of it, and reports.

    Args:
        args: What follows ``study``.

    Returns:
        The exit status: 0 if all runs ended well, 1 if some failed, 130 if interrupted.

    Raises:
        SettingError: For whatever can't be used, before anything runs; and if the disk is full.
    """
    options = parser().parse_args(args)
    options.file = find_config("study file", options.file, within="studies")
    if options.print_config:
        read_study(options.file)  # which says what is wrong
        print(dumped(read_yaml("study file", options.file)), end="")
        return 0
    _check_places(options)
    check_can_draw()  # rather than when all has been computed
    definition = _chosen(options)
    perform: Perform
    if definition.function:
        runs, perform = computations(definition), compute
    else:
        # Late: the parser of computations needs nothing of Lightning.
        from lightning_reg.cli.fitting import fit
        from lightning_reg.cli.plan import fits

        runs, perform = fits(definition), fit
    store = Store(_folder(options, definition), definition.study.name)
    store.check()
    _announce(definition, runs, store, quick=options.quick)
    command = command_line(["study", *args])
    failures: list[Failure] = []
    if not all(map(store.has_result, runs)):  # a finished study writes nothing but its report
        try:
            with _executor(options) as executor, store.locked():
                failures = execute(runs, store, perform, executor, metric=definition.study.metric)
        except KeyboardInterrupt:
            done = sum(map(store.has_result, runs))
            print(f"\nInterrupted; {done} of {len(runs)} runs are done. To go on:\n  {command}", file=sys.stderr)
            return 130
    results = [result for run in runs if (result := store.result(run)) is not None]
    for result in results:  # from a time when the study asked for another
        check_choice("metric", definition.study.metric, list(result.metrics))
    outcome = Outcome(
        study=definition.study,
        results=results,
        failures=failures,
        command=command,
        commands=_commands(runs),
        versions=_versions(),
        seconds=sum(result.seconds for result in results),
        quick=options.quick,
    )
    _report(outcome, store.folder)
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of what follows ``study``."""
    made = _Parser(
        prog=command_line(["study"]),
        description="Run variants of one run over seeds, and report what each is worth.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=keys_help(),
        allow_abbrev=False,
    )
    add = made.add_argument
    add("file", metavar="FILE", help="the study: a file, or the name of one that is shipped, such as dropout")
    add("--quick", action="store_true", help="the short form: two minutes at the most on two cores")
    add("--data", metavar="NAME", help="digits, mnist, fashion_mnist, cifar10, cifar100, or a folder of images")
    add("--root", metavar="FOLDER", help="where the data set lies, or is downloaded to; default: data")
    add("--seeds", type=int, metavar="N", help="how many seeds, from 0 on")
    add("--only", nargs="+", default=[], metavar="VARIANT", help="some of the variants")
    add("--jobs", type=int, default=1, metavar="N", help="runs at once, each with its share of the cores; default: 1")
    add("--cluster", metavar="ADDRESS", help="do the runs on a Ray cluster: auto, HOST:PORT, or local")
    add("--gpus-per-run", type=float, metavar="N", help="how many GPUs of the cluster each run has; default: 0")
    add("--output", metavar="FOLDER", help="where results and the report go; default: runs/studies/NAME")
    add("--print_config", action="store_true", help="print the file with all defaults, and run nothing")
    return made


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, with what was probably meant."""

    @override
    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split()
        known = [option for action in self._actions for option in action.option_strings]
        hint = did_you_mean(unknown[0].partition("=")[0], known) if unknown else ""
        raise SettingError(f"study: {message}{hint or f'; see {command_line()} study --help'}")


def _check_places(options: argparse.Namespace) -> None:
    check_count("jobs", options.jobs)
    if options.cluster is None and options.gpus_per_run is not None:
        raise SettingError("gpus_per_run must be left out without --cluster")
    if options.cluster is not None and options.jobs != 1:
        raise SettingError("jobs must be left out with --cluster, where as many runs are done as its cores allow")
    check_range("gpus_per_run", options.gpus_per_run or 0, low=0)


def _executor(options: argparse.Namespace) -> Executor:
    if options.cluster is None:
        return LocalExecutor(options.jobs)
    return RayExecutor(options.cluster, gpus_per_run=options.gpus_per_run or 0)


def _chosen(options: argparse.Namespace) -> Definition:
    definition, form = read_study(options.file), Form()
    if definition.function:
        for name in ("data", "root"):
            if getattr(options, name) is not None:
                raise SettingError(f"{name} must be left out of a study that trains nothing")
    elif options.data is not None or options.root is not None:
        from lightning_reg.cli.plan import data_form

        form, place = data_form(options.data, options.root, definition.data)
        definition = definition.in_form(form).on(place)
    if options.quick:
        definition = definition.in_form(definition.quick)
        if options.data is not None:
            definition = definition.in_form(form.quick or Form())
    if options.only:
        definition = definition.only(options.only)
    return definition if options.seeds is None else definition.with_seeds(options.seeds)


def _folder(options: argparse.Namespace, definition: Definition) -> Path:
    """Returns where results go: each form has its own folder, lest a trial's report replaces that of a long study."""
    if options.output is not None:
        return Path(options.output)
    parts = [definition.study.name]
    if options.data is not None:
        parts.append(Path(options.data).name)
    return Path("runs", "studies", "-".join([*parts, *(["quick"] if options.quick else [])]))


def _announce(definition: Definition, runs: Sequence[Run], store: Store, *, quick: bool) -> None:
    study_ = definition.study
    results = [result for run in runs if (result := store.result(run)) is not None]
    left = len(runs) - len(results)
    print(f"{study_.title}{', in short' if quick else ''}\n{study_.question}".rstrip())
    counts = f"{_counted(len(study_.variants), 'variant')}, {_counted(len(study_.seeds), 'seed')}"
    print(f"{_counted(len(runs), 'run')}: {counts}; {len(results)} done already")
    if not left:
        return
    if results:
        seconds = statistics.fmean(result.seconds for result in results) * left
        print(f"The other {left} take about {duration(seconds)} one after the other, as those did.")
    elif definition.minutes is not None:
        print(f"They take about {duration(60 * definition.minutes)} on two cores.")
    else:
        print("How long they take is told when the first is done.")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _commands(runs: Sequence[Run]) -> dict[str, str]:
    commands: dict[str, str] = {}
    for run in runs:
        if run.command and run.variant not in commands:
            commands[run.variant] = command_line(["fit", *run.command])
    return commands


def _versions() -> dict[str, str]:
    import lightning_reg

    found = {"lightning_reg": lightning_reg.__version__}
    found |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {**found, "Python": platform.python_version(), "processor": processor()}


def _report(outcome: Outcome, folder: Path) -> None:
    print("\n" + "\n".join(_table(outcome)))
    for failure in outcome.failures:
        print(f"failed: {failure.variant}, seed {failure.seed}: {failure.message}")
    if outcome.failures:
        print(f"Tracebacks are in {folder}/runs/*/failure.txt. The same command tries again what failed.")
    if outcome.results:
        print("\n" + "\n".join(headline(outcome)))
        try:
            print(f"report: {write_report(outcome, folder)}")
        except OSError as error:
            if is_disk_full(error, folder):
                raise full_disk(folder) from error
            print(f"The report can't be written: {error}", file=sys.stderr)


def _table(outcome: Outcome) -> list[str]:
    """Returns a line a variant: the mean and its standard error over seeds."""
    metric, found = outcome.study.metric, summaries(outcome, outcome.study.metric)
    rows = [["variant", metric]]
    for variant in outcome.study.variants:
        text = "no run has ended well"
        if variant in found:
            each = found[variant]
            text = f"{number(metric, each.mean, each.error)} ({_counted(len(each.values), 'seed')})"
        rows.append([variant, text])
    return table(rows)
